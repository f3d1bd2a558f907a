package files

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/agent/module/command"
	"drover/internal/fault"
)

func diffs() []module.Function {
	return []module.Function{
		module.Extra(module.Reads("file.get_diff", "Shows the difference of two files, which may be sources as salt://.\n\nsalt '*' file.get_diff /etc/hosts salt://hosts", getDiff, module.Need("file1", module.Str), module.Need("file2", module.Str), module.May("saltenv", module.Str, "base"),
			module.May("show_filenames", module.Bool, true), module.May("show_changes", module.Bool, true), module.May("template", module.Bool, false))),
		module.Tests("file.patch", "Applies a patch to a file with the program patch and shows its outcome.\n\nsalt '*' file.patch /opt/file.txt /tmp/file.txt.patch", patch, module.Need("originalfile", module.Str), module.Need("patchfile", module.Str),
			module.May("options", module.Str, ""), module.May("dry_run", module.Bool, false)),
	}
}

// sourced is what a source has, a path or one that Fetch opens; whole and bounded.
func sourced(ctx context.Context, c *module.Call, source string) ([]byte, error) {
	if filepath.IsAbs(source) {
		return load(source)
	}
	r, err := fetch(ctx, c, source)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxText+1))
	if err == nil && len(b) > maxText {
		err = fault.TooLarge("file_large", "%s is larger than %d bytes", source, maxText)
	}
	return b, err
}

func getDiff(ctx context.Context, c *module.Call) (any, error) {
	var texts [2]string
	var names [2]string
	for i, k := range []string{"file1", "file2"} {
		b, err := sourced(ctx, c, c.Str(k))
		if err != nil {
			return nil, err
		}
		texts[i] = string(b)
		if c.Bool("show_filenames") {
			names[i] = c.Str(k)
		}
	}
	switch {
	case texts[0] == texts[1]:
		return "", nil
	case !c.Bool("show_changes"):
		return "<show_changes=False>", nil
	case binary(texts[0]) || binary(texts[1]):
		return "Replace binary file", nil
	}
	return unified(names[0], names[1], texts[0], texts[1]), nil
}

func binary(s string) bool { return strings.ContainsRune(s[:min(len(s), 8000)], 0) }

func patch(ctx context.Context, c *module.Call) (any, error) {
	original, err := argPath(c, "originalfile")
	if err != nil {
		return nil, err
	}
	patchfile, err := argPath(c, "patchfile")
	if err != nil {
		return nil, err
	}
	options, err := command.Words(c.Str("options"))
	if err != nil {
		return nil, err
	}
	if len(options) == 0 {
		// As Salt: a forward patch, and what does not fit is not left beside the file.
		options = []string{"--forward", "--reject-file=-"}
		if isDir(original) {
			options = append(options, "--strip=1")
		}
	}
	argv := append([]string{"patch"}, options...)
	if c.Bool("dry_run") || c.Test {
		argv = append(argv, "--dry-run")
	}
	if isDir(original) {
		argv = append(argv, "--directory="+original, "--input="+patchfile)
	} else {
		if _, err := os.Stat(original); err != nil {
			return nil, failed("read", original, err)
		}
		argv = append(argv, "--input="+patchfile, "--", original)
	}
	r, err := command.Run(ctx, command.Spec{Argv: argv, Dir: "/", Env: []string{"LC_ALL=C"}})
	if err != nil {
		return nil, err
	}
	c.RC = r.Code
	return dict(r), nil
}
