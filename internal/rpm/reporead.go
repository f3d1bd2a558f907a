package rpm

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"io"
	"path"
	"strconv"
	"strings"

	"drover/internal/fault"
)

// Data is a metadata file as repomd.xml names it.
type Data struct {
	Type string // "primary", "filelists", "group" …
	Href string // below the repository's root
	Sum  string // hex, of the file as it is served
	Algo string // "sha256", "sha512", "sha1" …
	Size int64  // bytes, 0 when not told
	// What is in the file once unpacked; empty and 0 when not told.
	OpenSum  string
	OpenAlgo string
	OpenSize int64
	Time     int64 // seconds since 1970
}

// Bounds of what a repository may claim.
const (
	maxRepomd  = 1 << 20
	maxData    = 100
	maxOpen    = 4 << 30
	maxPackage = 2_000_000
	maxEntry   = 64 << 20 // the text of one package; the largest seen has 5 MiB
)

func badMeta(format string, args ...any) *fault.Error {
	return fault.Invalid("repodata", "bad repository metadata: "+format, args...).Fix("the repository is broken or hostile; try it again later or another mirror of it")
}

// sumSizes is the length of a hex digest by the names that repositories use.
var sumSizes = map[string]int{"sha": 40, "sha1": 40, "sha224": 56, "sha256": 64, "sha384": 96, "sha512": 128}

// checkSum tells whether sum is a digest of the algorithm. md5 is none any more.
func checkSum(algo, sum string) bool {
	_, err := hex.DecodeString(sum)
	size, known := sumSizes[algo]
	return err == nil && known && len(sum) == size
}

// readRepomd reads the files of a repomd.xml, unchecked.
func readRepomd(b []byte) (out []Data, err error) {
	if len(b) > maxRepomd {
		return nil, badMeta("a repomd.xml of %d bytes", len(b))
	}
	x := newScanner(bytes.NewReader(b))
	root, err := x.element()
	if err != nil {
		return nil, err
	}
	if string(root.name) != "repomd" || root.end {
		return nil, badMeta("repomd.xml starts with %.40q", root.name)
	}
	err = x.children(root, func(t tag) (err error) {
		if string(t.name) != "data" {
			return nil
		}
		if len(out) == maxData {
			return badMeta("repomd.xml names over %d files", maxData)
		}
		var d Data
		if d.Type, err = t.attr("type"); err == nil {
			err = x.children(t, func(t tag) error { return d.field(x, t) })
		}
		out = append(out, d)
		return err
	})
	if err == nil {
		err = x.tail()
	}
	return out, err
}

// field takes one of the elements of a file of repomd.xml.
func (d *Data) field(x *scanner, t tag) error {
	var algo, sum *string
	var number *int64
	switch string(t.name) {
	case "checksum":
		algo, sum = &d.Algo, &d.Sum
	case "open-checksum":
		algo, sum = &d.OpenAlgo, &d.OpenSum
	case "size":
		number = &d.Size
	case "open-size":
		number = &d.OpenSize
	case "timestamp":
		number = &d.Time
	case "location":
		var err error
		d.Href, err = t.attr("href")
		return err
	default:
		return nil
	}
	if algo != nil {
		var err error
		if *algo, err = t.attr("type"); err != nil {
			return err
		}
	}
	s, err := x.word(t)
	if err != nil {
		return err
	}
	if sum != nil {
		*sum = s
		return nil
	}
	whole, _, _ := strings.Cut(s, ".") // yum's createrepo wrote fractions of seconds
	if *number, err = strconv.ParseInt(whole, 10, 64); err != nil {
		return badMeta("%.40q for a number in repomd.xml", s)
	}
	return nil
}

// ReadRepomd reads a repomd.xml of at most 1 MiB. Every file has a location below the
// root and a digest of a known algorithm, no type comes twice, and a primary file is there.
// Errors have code repodata or repodata_location.
func ReadRepomd(b []byte) ([]Data, error) {
	out, err := readRepomd(b)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, d := range out {
		if err := CheckHref(d.Href); err != nil {
			return nil, err
		}
		if !checkSum(d.Algo, d.Sum) || d.OpenSum != "" && !checkSum(d.OpenAlgo, d.OpenSum) || d.Size < 0 || d.OpenSize < 0 {
			return nil, badMeta("the %.40q file of repomd.xml has no usable checksum or size", d.Type)
		}
		if seen[d.Type] {
			return nil, badMeta("repomd.xml names two %.40q files", d.Type)
		}
		seen[d.Type] = true
	}
	if !seen["primary"] {
		return nil, badMeta("repomd.xml names no primary file")
	}
	return out, nil
}

// CheckHref refuses a location that is not below the repository's root.
func CheckHref(href string) error {
	if href == "" || len(href) > 1024 || strings.HasPrefix(href, "/") || strings.Contains(href, "://") || strings.ContainsAny(href, "\x00\n\r\\") || path.Clean(href) != href ||
		href == "." || href == ".." || strings.HasPrefix(href, "../") {
		return fault.Invalid("repodata_location", "the location %.200q does not lie in the repository", href).Fix("the repository is broken or hostile")
	}
	return nil
}

// PrimaryPackage is a package as primary.xml names it.
type PrimaryPackage struct {
	NEVRA
	Sum    string // hex
	Algo   string // "sha256"
	Href   string // below the repository's root
	Size   int64  // of the file
	Source string // file name of the source RPM, empty for source packages
	// Times of the file and of the build, in seconds since 1970, and where the main header
	// lies in the file; 0 when not told.
	FileTime, BuildTime    int64
	HeaderStart, HeaderEnd int64
	// Dependencies and files are filled by ReadPrimaryDeps only. The flag of a requirement
	// that scripts need is SensePreReq.
	Requires, Provides, Conflicts, Obsoletes, Recommends, Suggests, Supplements, Enhances []Dep
	// Files is the paths that primary.xml names: some of the package's, see Primary.
	Files []string
}

// Deps is the dependencies of one kind.
func (p *PrimaryPackage) Deps(k DepKind) []Dep {
	if l := p.deps(k.String()); l != nil {
		return *l
	}
	return nil
}

// deps is the list of dependencies by its name in metadata, or nil.
func (p *PrimaryPackage) deps(name string) *[]Dep {
	switch name {
	case "requires":
		return &p.Requires
	case "provides":
		return &p.Provides
	case "conflicts":
		return &p.Conflicts
	case "obsoletes":
		return &p.Obsoletes
	case "recommends":
		return &p.Recommends
	case "suggests":
		return &p.Suggests
	case "supplements":
		return &p.Supplements
	case "enhances":
		return &p.Enhances
	}
	return nil
}

// ReadPrimary reads a primary.xml, compressed or not, package by package. It takes what is
// needed to fetch the packages and checks that the locations stay in the repository. It holds
// one package at a time; an error of fn ends it. Document types and entities other than XML's
// own are refused. Errors have code repodata or repodata_location.
func ReadPrimary(r io.Reader, fn func(PrimaryPackage) error) error { return readPrimary(r, false, fn) }

// ReadPrimaryDeps is ReadPrimary with the dependencies of each package, of all eight kinds,
// and the files that primary.xml names.
func ReadPrimaryDeps(r io.Reader, fn func(PrimaryPackage) error) error {
	return readPrimary(r, true, fn)
}

func readPrimary(r io.Reader, withDeps bool, fn func(PrimaryPackage) error) error {
	in, done, err := Open(r)
	if err != nil {
		return err
	}
	defer done()
	x := newScanner(&bounded{r: in, left: maxOpen})
	t, err := x.element()
	if err != nil {
		return err
	}
	if string(t.name) != "metadata" || t.end {
		return badMeta("primary.xml starts with %.40q", t.name)
	}
	if t.empty {
		return x.tail()
	}
	for n := 0; ; n++ {
		t, err := x.element()
		if err != nil {
			return err
		}
		if t.end {
			break
		}
		if n == maxPackage {
			return badMeta("primary.xml names over %d packages", maxPackage)
		}
		if string(t.name) != "package" || t.empty {
			return badMeta("primary.xml holds a %.40q where packages are", t.name)
		}
		p, err := primaryPackage(x, withDeps)
		if err != nil {
			return err
		}
		if err := fn(p); err != nil {
			return err
		}
	}
	return x.tail()
}

// Depths of elements in primary.xml.
const (
	inPackage = 3
	inFormat  = 4
	inDeps    = 5
)

func primaryPackage(x *scanner, withDeps bool) (p PrimaryPackage, err error) {
	limit := x.read + maxEntry
	var list *[]Dep
	for x.depth() >= inPackage-1 {
		if x.read > limit {
			return p, badMeta("a package with over %d bytes of metadata", maxEntry)
		}
		t, err := x.element()
		if err != nil {
			return p, err
		}
		if t.end {
			if t.depth == inFormat {
				list = nil
			}
			continue
		}
		switch {
		case t.depth == inPackage:
			err = p.field(x, t)
		case t.depth == inFormat && string(t.name) == "rpm:sourcerpm":
			p.Source, err = x.text(t)
		case t.depth == inFormat && string(t.name) == "rpm:header-range":
			if p.HeaderStart, err = t.number("start"); err == nil {
				p.HeaderEnd, err = t.number("end")
			}
		case !withDeps:
		case t.depth == inFormat && string(t.name) == "file":
			var f string
			if f, err = x.text(t); err == nil && f == "" {
				err = badMeta("a file without a name")
			}
			p.Files = append(p.Files, f)
		case t.depth == inFormat && !t.empty && bytes.HasPrefix(t.name, []byte("rpm:")):
			list = p.deps(string(t.name[len("rpm:"):]))
		case t.depth == inDeps && list != nil && string(t.name) == "rpm:entry":
			var d Dep
			if d, err = primaryDep(t); err == nil {
				*list = append(*list, d)
			}
		}
		if err != nil {
			return p, err
		}
	}
	if err := CheckHref(p.Href); err != nil {
		return p, err
	}
	if !checkSum(p.Algo, p.Sum) || p.Name == "" || p.Arch == "" || p.Version == "" || p.Release == "" {
		return p, badMeta("the package at %.200q has no name, version or checksum", p.Href)
	}
	return p, nil
}

// field takes one of a package's own elements.
func (p *PrimaryPackage) field(x *scanner, t tag) (err error) {
	// Of two words for one thing, another reader might believe the other.
	twice := false
	switch string(t.name) {
	case "name":
		twice = p.Name != ""
		p.Name, err = x.text(t)
	case "arch":
		twice = p.Arch != ""
		p.Arch, err = x.text(t)
	case "checksum":
		twice = p.Sum != ""
		if p.Algo, err = t.attr("type"); err == nil {
			p.Sum, err = x.text(t)
		}
	case "version":
		twice = p.Version != ""
		var e string
		if e, err = t.attr("epoch"); err == nil && e != "" {
			n, e := strconv.ParseUint(e, 10, 32)
			if e != nil {
				return badMeta("a package with an epoch that is no number").Wrap(e)
			}
			p.Epoch = uint32(n)
		}
		if err == nil {
			p.Version, err = t.attr("ver")
		}
		if err == nil {
			p.Release, err = t.attr("rel")
		}
	case "size":
		var s string
		if s, err = t.attr("package"); err == nil && s == "" {
			err = badMeta("a package without a size")
		}
		if err == nil {
			p.Size, err = t.number("package")
		}
	case "time":
		if p.FileTime, err = t.number("file"); err == nil {
			p.BuildTime, err = t.number("build")
		}
	case "location":
		twice = p.Href != ""
		p.Href, err = t.attr("href")
	}
	if twice && err == nil {
		err = badMeta("a package with two of %q", t.name)
	}
	return err
}

// number is the value of an attribute that holds a number, 0 when it isn't there.
func (t tag) number(name string) (int64, error) {
	s, err := t.attr(name)
	if err != nil || s == "" {
		return 0, err
	}
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, badMeta("a %.40q of which %q is %.40q", t.name, name, s)
	}
	return int64(n), nil
}

func primaryDep(t tag) (d Dep, err error) {
	get := func(name string) (v string) {
		if err == nil {
			v, err = t.attr(name)
		}
		return v
	}
	d.Name = get("name")
	switch get("flags") {
	case "LT":
		d.Flags = SenseLess
	case "GT":
		d.Flags = SenseGreater
	case "EQ":
		d.Flags = SenseEqual
	case "LE":
		d.Flags = SenseLess | SenseEqual
	case "GE":
		d.Flags = SenseGreater | SenseEqual
	}
	if d.Flags != 0 {
		if e := get("epoch"); e != "" && e != "0" {
			d.EVR = e + ":"
		}
		d.EVR += get("ver")
		if r := get("rel"); r != "" {
			d.EVR += "-" + r
		}
	}
	if p := get("pre"); p == "1" {
		d.Flags |= SensePreReq
	}
	if err == nil && d.Name == "" {
		err = badMeta("a dependency without a name")
	}
	return d, err
}

// Open unpacks a metadata file, or a file of another kind that is packed as one, by its first
// bytes: zstd, gzip, xz, bzip2, lzma, or none. The caller must call the returned function when
// done, and bound what it reads.
func Open(r io.Reader) (io.Reader, func(), error) {
	b := bufio.NewReader(r)
	if _, err := b.Peek(1); err != nil {
		return nil, nil, badMeta("an empty file").Wrap(err)
	}
	c, err := unpack(b)
	if err != nil {
		return nil, nil, badMeta("it cannot be unpacked").Wrap(err)
	}
	return c, func() { _ = c.Close() }, nil
}
