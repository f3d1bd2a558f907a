package distgit

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"

	"drover/internal/fault"
)

// SourceLine is one line of a "sources" file.
type SourceLine struct {
	File string
	Sum  string // hex sha512
}

var reFile = regexp.MustCompile(`^[A-Za-z0-9_@][A-Za-z0-9_.@+~^=,-]{0,199}$`)

func checkFile(name string) error {
	if !reFile.MatchString(name) || name == "sources" {
		return fault.Invalid("source_name", "%.200q is no name of a source file", name).Fix("use a plain file name without directories, spaces or a leading dot")
	}
	return nil
}

var reNew = regexp.MustCompile(`^([A-Za-z0-9]+) \(([^)]+)\) = ([0-9a-fA-F]+)$`)

// ParseSources reads a "sources" file: lines "SHA512 (file) = hex", or of the old form
// "hex  file". Only sha512 is taken; md5 proves nothing any more.
func ParseSources(text []byte) ([]SourceLine, error) {
	var out []SourceLine
	if len(text) > 1<<20 {
		return nil, fault.TooLarge("sources", "a sources file of %d bytes", len(text))
	}
	seen := map[string]bool{}
	for i, line := range bytes.Split(text, []byte("\n")) {
		l := strings.TrimRight(string(line), " \t\r")
		if l == "" || strings.HasPrefix(l, "#") {
			continue
		}
		bad := func(format string, args ...any) error {
			return fault.Invalid("sources", "line %d of sources: %s", i+1, fmt.Sprintf(format, args...)).Fix("write lines as `drover pkg new-sources` does: SHA512 (file) = sum")
		}
		var sum, file string
		if m := reNew.FindStringSubmatch(l); m != nil {
			if !strings.EqualFold(m[1], "sha512") {
				return nil, bad("the hash type %.20s is not taken", m[1])
			}
			file, sum = m[2], m[3]
		} else if f := strings.Fields(l); len(f) == 2 {
			sum, file = f[0], strings.TrimPrefix(f[1], "*")
		} else {
			return nil, bad("%.100q is no source", l)
		}
		sum = strings.ToLower(sum)
		if _, err := hex.DecodeString(sum); err != nil || len(sum) != 128 {
			return nil, bad("%.40q is no sha512", sum)
		}
		if err := checkFile(file); err != nil {
			return nil, bad("%v", err)
		}
		if seen[file] {
			return nil, bad("%s is named twice", file)
		}
		seen[file] = true
		out = append(out, SourceLine{file, sum})
	}
	return out, nil
}

// FormatSources writes a "sources" file in the new form.
func FormatSources(lines []SourceLine) []byte {
	var b bytes.Buffer
	for _, l := range lines {
		fmt.Fprintf(&b, "SHA512 (%s) = %s\n", l.File, l.Sum)
	}
	return b.Bytes()
}

var (
	reSpecName  = regexp.MustCompile(`(?mi)^[ \t]*Name[ \t]*:[ \t]*(\S+)[ \t]*\r?$`)
	reSpecMacro = regexp.MustCompile(`(?m)^[ \t]*%(?:global|define)[ \t]+([A-Za-z_][A-Za-z0-9_]*)[ \t]+(\S+)[ \t]*\r?$`)
	reMacroUse  = regexp.MustCompile(`%\{?\??([A-Za-z_][A-Za-z0-9_]*)\}?`)
)

// SpecName reads the Name of a spec file from its text, with simple macros expanded. It is
// "" when only rpm could tell.
func SpecName(spec []byte) string {
	m := reSpecName.FindSubmatch(spec)
	if m == nil {
		return ""
	}
	macros := map[string]string{}
	for _, d := range reSpecMacro.FindAllSubmatch(spec, 1000) {
		macros[string(d[1])] = string(d[2])
	}
	name := string(m[1])
	for range 8 {
		next := reMacroUse.ReplaceAllStringFunc(name, func(u string) string {
			if v, ok := macros[reMacroUse.FindStringSubmatch(u)[1]]; ok && len(name) < 1000 {
				return v
			}
			return u
		})
		if next == name {
			break
		}
		name = next
	}
	if strings.ContainsAny(name, "%{}") {
		return ""
	}
	return name
}
