package rpm

import (
	"bytes"
	"cmp"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Treeinfo is what a .treeinfo file says of an installation tree: the files that a machine
// boots and installs from, beside the packages.
type Treeinfo struct {
	Family, Version, Arch, Variant string
	Time                           int64 // of the build, seconds since 1970
	Variants                       []TreeVariant
	// Images is the boot images by platform ("x86_64", "xen") and name ("kernel", "initrd").
	Images map[string]map[string]string
	// Main and Inst are the images of the installer itself.
	Main, Inst string
	// Files is every file of the tree that is named anywhere, by path. Metadata of
	// repositories is none of them.
	Files []TreeFile
}

// TreeVariant is a part of the distribution: BaseOS, AppStream.
type TreeVariant struct {
	ID, Name, Type string
	// Where packages and repository lie, from the tree's root. It may be another tree: "../".
	Packages, Repository string
}

// TreeFile is a file of an installation tree.
type TreeFile struct {
	Path      string // below the root
	Algo, Sum string // hex; empty when not told
}

// Bounds of a .treeinfo file: the largest have 20 KiB and some 50 files.
const (
	maxTreeinfo  = 1 << 20
	maxTreeLines = 10_000
)

// ReadTreeinfo reads a .treeinfo file of at most 1 MiB. Every file lies below the tree's root
// and what checksums it has are of a known algorithm. Errors have code repodata or
// repodata_location.
func ReadTreeinfo(b []byte) (t Treeinfo, err error) {
	ini, err := readINI(b)
	if err != nil {
		return t, err
	}
	first := func(key string, sections ...string) string {
		for _, s := range sections {
			if v := ini[s][key]; v != "" {
				return v
			}
		}
		return ""
	}
	t.Family = cmp.Or(first("name", "release", "product"), first("family", "general"))
	t.Version = cmp.Or(first("version", "release", "product"), first("version", "general"))
	t.Arch, t.Variant = first("arch", "tree", "general"), first("variant", "general")
	if t.Arch == "" {
		return t, badMeta("a .treeinfo without an arch")
	}
	if s := cmp.Or(first("build_timestamp", "tree"), first("timestamp", "general")); s != "" {
		whole, _, _ := strings.Cut(s, ".") // some have fractions
		if t.Time, err = strconv.ParseInt(whole, 10, 64); err != nil {
			return t, badMeta("a .treeinfo with %.40q for a time", s)
		}
	}
	files := map[string]TreeFile{}
	add := func(p string) error {
		if p == "" {
			return nil
		}
		if err := CheckHref(p); err != nil {
			return err
		}
		if _, ok := files[p]; !ok {
			files[p] = TreeFile{Path: p}
		}
		return nil
	}
	for _, p := range slices.Sorted(maps.Keys(ini["checksums"])) {
		algo, sum, _ := strings.Cut(ini["checksums"][p], ":")
		if err := CheckHref(p); err != nil {
			return t, err
		}
		if p == repomdPath || strings.HasSuffix(p, "/"+repomdPath) {
			continue
		}
		if algo == "md5" { // of trees before 2010: protects nothing
			algo, sum = "", ""
		} else if !checkSum(algo, sum) {
			return t, badMeta("a .treeinfo with %.40q for a checksum", ini["checksums"][p])
		}
		files[p] = TreeFile{Path: p, Algo: algo, Sum: sum}
	}
	t.Main, t.Inst = first("mainimage", "stage2"), first("instimage", "stage2")
	if err := errors.Join(add(t.Main), add(t.Inst)); err != nil {
		return t, err
	}
	for _, section := range slices.Sorted(maps.Keys(ini)) {
		if platform, ok := strings.CutPrefix(section, "images-"); ok && platform != "" {
			if t.Images == nil {
				t.Images = map[string]map[string]string{}
			}
			t.Images[platform] = ini[section]
			for _, p := range ini[section] {
				if err := add(p); err != nil {
					return t, err
				}
			}
		}
		if id, ok := strings.CutPrefix(section, "variant-"); ok {
			v := ini[section]
			t.Variants = append(t.Variants, TreeVariant{ID: cmp.Or(v["id"], id), Name: v["name"], Type: v["type"], Packages: v["packages"], Repository: v["repository"]})
		}
	}
	for _, p := range slices.Sorted(maps.Keys(files)) {
		t.Files = append(t.Files, files[p])
	}
	return t, nil
}

// readINI reads sections of keys and values, as Python's ConfigParser does without its
// interpolation and lines that go on.
func readINI(b []byte) (map[string]map[string]string, error) {
	if len(b) > maxTreeinfo {
		return nil, badMeta("a .treeinfo of %d bytes", len(b))
	}
	if err := xmlChars(b); err != nil { // the characters of a text
		return nil, err
	}
	out := map[string]map[string]string{}
	var section map[string]string
	lines := 0
	for line := range bytes.Lines(b) {
		if lines++; lines > maxTreeLines {
			return nil, badMeta("a .treeinfo of over %d lines", maxTreeLines)
		}
		s := string(bytes.TrimSpace(line))
		switch {
		case s == "" || s[0] == '#' || s[0] == ';':
			continue
		case s[0] == '[' && s[len(s)-1] == ']':
			name := s[1 : len(s)-1]
			if section = out[name]; section == nil {
				section = map[string]string{}
				out[name] = section
			}
			continue
		}
		i := strings.IndexAny(s, "=:")
		if i <= 0 || section == nil {
			return nil, badMeta("a .treeinfo with the line %.80q", s)
		}
		key := strings.TrimSpace(s[:i])
		if _, ok := section[key]; ok {
			return nil, badMeta("a .treeinfo with two of %.80q", key)
		}
		section[key] = strings.TrimSpace(s[i+1:])
	}
	return out, nil
}
