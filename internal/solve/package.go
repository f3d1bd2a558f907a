package solve

import (
	"encoding/binary"
	"slices"

	"drover/internal/fault"
	"drover/internal/rpm"
)

// Package is what dependencies need to know of a package.
type Package struct {
	rpm.NEVRA
	Source                                   string // name of the source package
	Provides, Requires, Conflicts, Obsoletes []rpm.Dep
	Files                                    []string // paths that others may require
}

// FromPrimary takes from repository metadata what is needed.
func FromPrimary(p *rpm.PrimaryPackage) Package {
	source := p.Name
	if n, err := rpm.ParseNEVRA(p.Source); err == nil {
		source = n.Name
	}
	return Package{
		NEVRA: p.NEVRA, Source: source,
		Provides: p.Provides, Requires: p.Requires, Conflicts: p.Conflicts, Obsoletes: p.Obsoletes,
		Files: p.Files,
	}
}

// senseMask is the flags that compare versions.
const senseMask = rpm.SenseLess | rpm.SenseGreater | rpm.SenseEqual

// magic starts an encoded block; the last byte is the version of the format.
const magic = "dsb1"

// Bounds of an encoded block. A block of a repository has about 128 packages; the largest
// package of CentOS Stream provides 70,000 symbols.
const (
	maxBlock = 64 << 20
	maxText  = 1 << 16
	// What is provided is held against what is wanted of the same name, each against each:
	// so many of one name in a block. The most seen is 425.
	maxSame = 4096
	// A package takes at least so many bytes: four texts, five lists. The number of packages
	// is written times this, so that it can be checked against the bytes that are left.
	leastPackage = 9
)

// table numbers what is seen.
type table[T comparable] struct {
	ids  map[T]uint64
	list []T
}

func (t *table[T]) id(v T) uint64 {
	if t.ids == nil {
		t.ids = map[T]uint64{}
	}
	n, ok := t.ids[v]
	if !ok {
		n = uint64(len(t.list))
		t.ids[v] = n
		t.list = append(t.list, v)
	}
	return n
}

// plain is a dependency without what says nothing about versions.
func plain(d rpm.Dep) rpm.Dep {
	d.Flags &= senseMask
	if d.Flags == 0 || d.EVR == "" {
		d.Flags, d.EVR = 0, ""
	}
	return d
}

func (p *Package) lists() [4][]rpm.Dep {
	return [4][]rpm.Dep{p.Provides, p.Requires, p.Conflicts, p.Obsoletes}
}

// Encode writes packages as a block. The same packages give the same bytes.
func Encode(pkgs []Package) []byte {
	var words []string
	add := func(s string) { words = append(words, s) }
	for i := range pkgs {
		p := &pkgs[i]
		add(p.Name)
		add(p.EVR())
		add(p.Arch)
		add(p.Source)
		for _, l := range p.lists() {
			for _, d := range l {
				d = plain(d)
				add(d.Name)
				add(d.EVR)
			}
		}
		words = append(words, p.Files...)
	}
	slices.Sort(words)
	var text table[string]
	var deps table[rpm.Dep]
	b := []byte(magic)
	words = slices.Compact(words)
	b = binary.AppendUvarint(b, uint64(len(words)))
	last := ""
	for _, w := range words {
		text.id(w)
		n := 0
		for n < len(w) && n < len(last) && w[n] == last[n] {
			n++
		}
		b = binary.AppendUvarint(b, uint64(n))
		b = binary.AppendUvarint(b, uint64(len(w)-n))
		b = append(b, w[n:]...)
		last = w
	}
	var body []byte
	for i := range pkgs {
		p := &pkgs[i]
		for _, s := range []string{p.Name, p.EVR(), p.Arch, p.Source} {
			body = binary.AppendUvarint(body, text.id(s))
		}
		for _, l := range p.lists() {
			body = binary.AppendUvarint(body, uint64(len(l)))
			for _, d := range l {
				body = binary.AppendUvarint(body, deps.id(plain(d)))
			}
		}
		body = binary.AppendUvarint(body, uint64(len(p.Files)))
		for _, f := range p.Files {
			body = binary.AppendUvarint(body, text.id(f))
		}
	}
	b = binary.AppendUvarint(b, uint64(len(deps.list)))
	for _, d := range deps.list {
		b = binary.AppendUvarint(b, text.id(d.Name)<<3|uint64(d.Flags>>1))
		if d.Flags != 0 {
			b = binary.AppendUvarint(b, text.id(d.EVR))
		}
	}
	b = binary.AppendUvarint(b, uint64(len(pkgs))*leastPackage)
	return append(b, body...)
}

// raw is a package as a block has it: numbers of texts and dependencies of the block.
type raw struct {
	name, evr, arch, source uint32
	deps                    [4][]uint32
	files                   []uint32
}

// rawDep is a dependency of a block.
type rawDep struct {
	name, evr uint32
	flags     uint8
}

func badBlock(what string) *fault.Error {
	return fault.Invalid("solve_block", "a block of dependencies is damaged: %s", what).Fix("make it anew from the repository's metadata")
}

func clip(s string) string { return s[:min(len(s), 200)] }

// reader walks over an encoded block; after the first error it gives zeros.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) number() uint64 {
	n, l := binary.Uvarint(r.b)
	if l <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[l:]
	return n
}

// count is a number of things of which each takes at least a byte.
func (r *reader) count() int {
	n := r.number()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return 0
	}
	return int(n)
}

func (r *reader) index(below int) uint32 {
	n := r.number()
	if n >= uint64(below) {
		r.bad = true
		return 0
	}
	return uint32(n)
}

// indexes reads a list of them into the free end of store.
func (r *reader) indexes(store []uint32, below int) (list, rest []uint32) {
	n := r.count()
	if cap(store)-len(store) < n {
		store = make([]uint32, 0, max(4096, n))
	}
	at := len(store)
	for range n {
		store = append(store, r.index(below))
	}
	return store[at:len(store):len(store)], store
}

// decode reads what Encode wrote. The texts share one string.
func decode(b []byte) (text []string, deps []rawDep, pkgs []raw, err error) {
	if len(b) > maxBlock {
		return nil, nil, nil, badBlock("it is too large")
	}
	if len(b) < len(magic) || string(b[:len(magic)]) != magic {
		return nil, nil, nil, badBlock("it does not start as one")
	}
	r := &reader{b: b[len(magic):]}
	all := make([]byte, 0, 2*len(b))
	n := r.count()
	ends := make([]int, 0, n)
	last := 0 // where the previous text starts
	for range n {
		keep, more := r.number(), r.count()
		start := len(all)
		if keep > uint64(start-last) || keep+uint64(more) > maxText || start > 16*len(b)+maxText {
			return nil, nil, nil, badBlock("a text of it is out of bounds")
		}
		all = append(all, all[last:last+int(keep)]...)
		all = append(all, r.b[:more]...)
		r.b = r.b[more:]
		last = start
		ends = append(ends, len(all))
	}
	whole, start := string(all), 0
	text = make([]string, n)
	for i, end := range ends {
		text[i], start = whole[start:end], end
	}
	deps = make([]rawDep, r.count())
	perName := make([]int32, n)
	for i := range deps {
		d := &deps[i]
		v := r.number()
		d.flags = uint8(v & 7)
		if v >>= 3; v >= uint64(n) {
			return nil, nil, nil, badBlock("a dependency of it has no name")
		}
		d.name = uint32(v)
		if perName[d.name]++; perName[d.name] > maxSame {
			return nil, nil, nil, badBlock("it has too many dependencies on " + clip(text[v]))
		}
		if d.flags != 0 {
			d.evr = r.index(n)
		}
	}
	pkgs = make([]raw, r.count()/leastPackage)
	var store []uint32
	for i := range pkgs {
		p := &pkgs[i]
		for _, f := range []*uint32{&p.name, &p.evr, &p.arch, &p.source} {
			*f = r.index(n)
		}
		for k := range p.deps {
			p.deps[k], store = r.indexes(store, len(deps))
		}
		p.files, store = r.indexes(store, n)
	}
	if r.bad || len(r.b) > 0 {
		return nil, nil, nil, badBlock("its packages do not end where it does")
	}
	return text, deps, pkgs, nil
}
