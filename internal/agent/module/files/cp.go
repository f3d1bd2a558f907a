package files

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
)

const maxFetch = 64 << 30 // of one file that is fetched onto the disk

func cps() []module.Function {
	source, env := module.Need("path", module.Str), module.May("saltenv", module.Str, nil)
	hash := module.May("source_hash", module.Str, nil)
	later := func(name, doc string) module.Function {
		return module.Reads(name, doc, func(context.Context, *module.Call) (any, error) {
			return nil, fault.Unavailable("salt_files_later", "%s: the files of states are not listed to hosts yet", name).Fix("fetch a file by its name with cp.get_file salt://...")
		}, module.May("saltenv", module.Str, nil), module.May("prefix", module.Str, ""))
	}
	return []module.Function{
		module.Tests("cp.get_file", "Fetches a file of the server's and puts it into a place; its name is shown.\n\nsalt '*' cp.get_file salt://path/to/file /minion/dest makedirs=True", getFile, source, module.Need("dest", module.Str), env,
			module.May("makedirs", module.Bool, false), module.May("template", module.Str, nil), module.May("gzip", module.Any, nil)),
		module.Extra(module.Tests("cp.get_template", "Renders a template of the server's and puts it into a place.\n\nsalt '*' cp.get_template salt://path/to/template /minion/dest", func(ctx context.Context, c *module.Call) (any, error) {
			if t := c.Str("template"); t != "" && t != "None" {
				return nil, fault.Unavailable("template_later", "%s: templates of the kind %s are not rendered yet", c.Str("path"), t).Fix("they come with states; cp.get_file takes the file as it is")
			}
			return getFile(ctx, c)
		}, source, module.Need("dest", module.Str), module.May("template", module.Str, "jinja"), env, module.May("makedirs", module.Bool, false))),
		module.Tests("cp.get_url", "Fetches a file from an address, or shows it when there is no place for it.\n\nsalt '*' cp.get_url http://example.com/x /tmp/x", getURL, source, module.May("dest", module.Str, ""), env, module.May("makedirs", module.Bool, false), hash),
		module.Reads("cp.get_file_str", "Fetches a file and shows it.\n\nsalt '*' cp.get_file_str salt://my/file", func(ctx context.Context, c *module.Call) (any, error) {
			b, err := sourced(ctx, c, c.Str("path"))
			if gone(err) {
				return false, nil
			}
			return module.Valid(string(b)), err
		}, source, env),
		module.Tests("cp.cache_file", "Fetches a file into the host's cache and shows where it is.\n\nsalt '*' cp.cache_file salt://path/to/file", func(ctx context.Context, c *module.Call) (any, error) {
			return cacheFile(ctx, c, c.Str("path"), c.Str("source_hash"))
		}, source, env, hash),
		module.Tests("cp.cache_files", "Fetches files into the host's cache and shows where they are.\n\nsalt '*' cp.cache_files salt://a,salt://b", func(ctx context.Context, c *module.Call) (any, error) {
			out := []any{}
			for _, s := range c.Strs("paths") {
				p, err := cacheFile(ctx, c, s, "")
				if err != nil {
					return nil, err
				}
				out = append(out, p)
			}
			return out, nil
		}, module.Need("paths", module.List), env),
		module.Tests("cp.cache_local_file", "Copies a file of the host's into its cache and shows where it is.\n\nsalt '*' cp.cache_local_file /etc/hosts", func(ctx context.Context, c *module.Call) (any, error) {
			p, err := argPath(c, "path")
			if err != nil || !isFile(p) {
				return "", err
			}
			return cacheFile(ctx, c, p, "")
		}, source),
		module.Reads("cp.is_cached", "Tells where a file is in the host's cache; nothing when it is not there.\n\nsalt '*' cp.is_cached salt://path/to/file", func(_ context.Context, c *module.Call) (any, error) {
			p, err := cached(c, c.Str("path"))
			if err != nil || !isFile(p) {
				return "", err
			}
			return p, nil
		}, source, env),
		module.Reads("cp.hash_file", "Computes the checksum of a file of the server's or of the host.\n\nsalt '*' cp.hash_file salt://path/to/file", func(ctx context.Context, c *module.Call) (any, error) {
			b, err := sourced(ctx, c, c.Str("path"))
			if gone(err) {
				return map[string]any{}, nil
			}
			if err != nil {
				return nil, err
			}
			h, err := sum("sha256", string(b))
			return map[string]any{"hsum": h, "hash_type": "sha256"}, err
		}, source, env),
		later("cp.list_master", "Lists the files of the server's that states use.\n\nsalt '*' cp.list_master"),
		later("cp.list_master_dirs", "Lists the directories of the server's that states use.\n\nsalt '*' cp.list_master_dirs"),
		later("cp.list_states", "Lists the states of the server's.\n\nsalt '*' cp.list_states"),
		module.Reads("cp.list_minion", "Lists the files in the host's cache.\n\nsalt '*' cp.list_minion", listCache, env),
		module.Reads("cp.push", "Sends a file of the host's to the server.\n\nsalt '*' cp.push /etc/fstab", on("path", func(p string, _ *module.Call) (any, error) {
			if !isFile(p) {
				return false, nil
			}
			// module.Host fetches, but has no way that brings bytes to the server.
			return nil, fault.Unavailable("push_later", "%s cannot be sent: the agent has no way yet that takes files to the server", p).Fix("show a small one with file.read")
		}), source, module.May("keep_symlinks", module.Bool, false), module.May("upload_path", module.Str, nil), module.May("remove_source", module.Bool, false)),
	}
}

func gone(err error) bool {
	return err != nil && (errors.Is(err, fs.ErrNotExist) || fault.As(err).Kind == fault.KindNotFound)
}

// fetch opens a source.
func fetch(ctx context.Context, c *module.Call, source string) (io.ReadCloser, error) {
	if c.Host == nil || c.Fetch == nil {
		return nil, fault.Unavailable("fetch_missing", "this agent cannot fetch %s", source)
	}
	return c.Fetch(ctx, source)
}

// fetchTo puts what a source has into a file.
func fetchTo(ctx context.Context, c *module.Call, source, dest string, mode fs.FileMode) error {
	r, err := fetch(ctx, c, source)
	if err != nil {
		return err
	}
	defer r.Close()
	return replaceBy(dest, mode, func(w io.Writer) error {
		n, err := io.Copy(w, io.LimitReader(watched{ctx, r}, maxFetch+1))
		if err == nil && n > maxFetch {
			return fault.TooLarge("file_large", "%s is larger than %d bytes", source, int64(maxFetch))
		}
		return err
	})
}

// destination is where a file goes: into a directory under its own name.
func destination(c *module.Call, source string) (string, error) {
	d := c.Str("dest")
	p, err := absolute(d)
	if err != nil {
		return "", err
	}
	if strings.HasSuffix(d, "/") || isDir(p) {
		p = filepath.Join(p, filepath.Base(source))
	}
	if isDir(filepath.Dir(p)) || c.Test {
		return p, nil
	}
	if !c.Bool("makedirs") {
		return "", fault.NotFound("directory_missing", "there is no directory %s", filepath.Dir(p)).Fix("set makedirs=True")
	}
	return p, parents(p)
}

func getFile(ctx context.Context, c *module.Call) (any, error) {
	source := c.Str("path")
	if strings.Contains(source, "{{") || strings.Contains(c.Str("dest"), "{{") || (c.Str("template") != "" && strings.HasPrefix(c.Str("template"), "jinja")) {
		return nil, fault.Unavailable("template_later", "%s: templates in names are not rendered yet", source).Fix("write the name out")
	}
	dest, err := destination(c, source)
	if err != nil || c.Test {
		return dest, err
	}
	if err := fetchTo(ctx, c, source, dest, 0o644); err != nil {
		if gone(err) {
			c.RC = 1
			return "", nil // as Salt: there is no such file
		}
		return nil, err
	}
	return dest, nil
}

func getURL(ctx context.Context, c *module.Call) (any, error) {
	source := c.Str("path")
	if c.Any("dest") == nil {
		b, err := sourced(ctx, c, source)
		return module.Valid(string(b)), err
	}
	if c.Str("dest") == "" {
		return cacheFile(ctx, c, source, c.Str("source_hash"))
	}
	dest, err := destination(c, source)
	if err != nil || c.Test {
		return dest, err
	}
	if err := fetchTo(ctx, c, source, dest, 0o644); err != nil {
		return nil, err
	}
	return dest, verify(ctx, dest, c.Str("source_hash"), source)
}

// verify removes a file that is not what it was said to be.
func verify(ctx context.Context, p, hash, source string) error {
	if hash == "" {
		return nil
	}
	ok, err := checkHash(ctx, p, hash)
	if err == nil && !ok {
		err = fault.Conflict("hash_differs", "%s has another checksum than %s", source, hash)
	}
	if err != nil {
		return errors.Join(err, os.Remove(p))
	}
	return nil
}

// cacheDir is the host's cache.
func cacheDir(c *module.Call) (string, error) {
	if c.Host == nil || !filepath.IsAbs(c.Dir) {
		return "", fault.Unavailable("no_cache", "this agent keeps no files")
	}
	return filepath.Join(c.Dir, "cache"), nil
}

// cached is where a source is in the cache, as Salt lays it out.
func cached(c *module.Call, source string) (string, error) {
	dir, err := cacheDir(c)
	if err != nil {
		return "", err
	}
	if filepath.IsAbs(source) {
		return filepath.Join(dir, "localfiles", filepath.Clean(source)), nil
	}
	u, err := url.Parse(source)
	if err != nil || u.Scheme == "" {
		return "", fault.Invalid("source_bad", "%q is no source", source).Fix("salt://..., https://... or a path").Wrap(err)
	}
	if u.Scheme == "salt" {
		env := c.Str("saltenv")
		if q := u.Query().Get("saltenv"); q != "" {
			env = q
		}
		if env == "" {
			env = "base"
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(source, "salt://"), "?")
		if !filepath.IsLocal(name) || !filepath.IsLocal(env) || strings.Contains(env, "/") {
			return "", fault.Invalid("source_bad", "%q leaves the files of the server", source)
		}
		return filepath.Join(dir, "files", env, name), nil
	}
	name := strings.TrimPrefix(filepath.Clean("/"+u.Path), "/")
	if u.RawQuery != "" {
		h, err := sum("sha256", u.RawQuery)
		if err != nil {
			return "", err
		}
		name += "-" + h[:16]
	}
	host := strings.ReplaceAll(u.Host, ":", "_")
	if name == "" || host == "" || !filepath.IsLocal(host) || strings.Contains(host, "/") {
		return "", fault.Invalid("source_bad", "%q names no file", source)
	}
	return filepath.Join(dir, "extrn_files", "base", host, name), nil
}

// cacheFile fetches a source into the cache unless what is there has the checksum already.
func cacheFile(ctx context.Context, c *module.Call, source, hash string) (any, error) {
	p, err := cached(c, source)
	if err != nil || c.Test {
		return p, err
	}
	if hash != "" && isFile(p) {
		if ok, err := checkHash(ctx, p, hash); err == nil && ok {
			return p, nil
		}
	}
	if err := durable.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		return nil, failed("made", filepath.Dir(p), err)
	}
	if filepath.IsAbs(source) {
		i, err := os.Stat(source)
		if err != nil {
			return nil, failed("read", source, err)
		}
		return p, copyFile(ctx, source, p, i)
	}
	if err := fetchTo(ctx, c, source, p, 0o600); err != nil {
		if gone(err) {
			c.RC = 1
			return false, nil
		}
		return nil, err
	}
	return p, verify(ctx, p, hash, source)
}

func listCache(ctx context.Context, c *module.Call) (any, error) {
	dir, err := cacheDir(c)
	if err != nil {
		return nil, err
	}
	env := c.Str("saltenv")
	if env == "" {
		env = "base"
	}
	if !filepath.IsLocal(env) {
		return nil, fault.Invalid("source_bad", "%q is no environment", env)
	}
	out := []any{}
	for _, d := range []string{filepath.Join(dir, "files", env), filepath.Join(dir, "localfiles"), filepath.Join(dir, "extrn_files")} {
		err := filepath.WalkDir(d, func(p string, e fs.DirEntry, err error) error {
			if err != nil {
				return nil //nolint:nilerr // there is no such part of the cache yet
			}
			if cerr := ctx.Err(); cerr != nil || e.IsDir() {
				return cerr
			}
			if len(out) >= maxNames {
				return fs.SkipAll
			}
			rel, err := filepath.Rel(d, p)
			out = append(out, module.Valid(rel))
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}
