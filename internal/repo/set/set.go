package set

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"drover/internal/blob"
	"drover/internal/fault"
	"drover/internal/rpm"
)

// Package is a package file as served.
type Package struct {
	PkgID  string `json:"pkgid"`  // sha256 of the file
	Header string `json:"header"` // sha256 of the immutable header
	NEVRA  string `json:"nevra"`
	File   string `json:"file"`
	Arch   string `json:"arch"`
	Source string `json:"source"`        // name of the source package
	Key    string `json:"key,omitempty"` // that drover signed it with
	Size   int64  `json:"size"`
	// Where the file is: a head before a core; without a head the core is the whole file;
	// without a core it is not fetched yet.
	Head  blob.Digest `json:"-"`
	Core  blob.Digest `json:"-"`
	Start int64       `json:"-"` // of the main header in the file
	End   int64       `json:"-"`
	Mtime int64       `json:"-"` // seconds since 1970 as the metadata tells it; 0 when it is not made here
	Built int64       `json:"-"` // seconds since 1970
	Entry string      `json:"-"` // what metadata says of it
}

// Member is a package at its place in a tree.
type Member struct {
	Package
	Href string // below the tree's root
}

// Location is where the trees of tags have a package. The first letters of the id keep two
// signatures of one file apart.
func (p Package) Location() string { return "Packages/" + p.PkgID[:12] + "/" + p.File }

// order sorts the members of a tree: by source package, so that a build lies together, then by
// name, arch and version.
func order(a, b Member) int {
	if c := cmp.Or(strings.Compare(a.Source, b.Source), strings.Compare(a.Name(), b.Name()), strings.Compare(a.Arch, b.Arch)); c != 0 {
		return c
	}
	return cmp.Or(strings.Compare(a.NEVRA, b.NEVRA), strings.Compare(a.PkgID, b.PkgID), strings.Compare(a.Href, b.Href))
}

// Name is the package's name: its NEVRA up to the dash before the version.
func (p Package) Name() string {
	s := p.NEVRA
	if i := strings.LastIndexByte(s, '-'); i > 0 {
		s = s[:i]
	}
	if i := strings.LastIndexByte(s, '-'); i > 0 {
		s = s[:i]
	}
	return s
}

// Chunk is a run of members. A tree is a list of them, cut where the source packages' names
// say so: a change of one source package changes one chunk, and trees that hold the same
// packages have the same chunks, however they came about.
type Chunk struct {
	ID          string // sha256 over its packages and their places
	N           int
	First, Last string   // source packages
	Bytes       int64    // of its packages
	Built       int64    // when the newest was, seconds since 1970
	Members     []Member // nil when they are not loaded
}

// chunkAim is how many packages a chunk has on average: with fewer the metadata packs worse,
// with more a change costs more. The first half of them is never cut, so that chunks are more
// alike. A source package of more than chunkLarge packages is cut too.
const (
	chunkAim   = 128
	chunkLeast = chunkAim / 2
	chunkLarge = 2 * chunkAim
)

func newChunk(ms []Member) Chunk {
	h := sha256.New()
	c := Chunk{N: len(ms), First: ms[0].Source, Last: ms[len(ms)-1].Source, Members: ms}
	for _, m := range ms {
		fmt.Fprintf(h, "%s %s\n", m.PkgID, m.Href)
		c.Bytes += m.Size
		c.Built = max(c.Built, m.Built)
	}
	c.ID = hex.EncodeToString(h.Sum(nil))
	return c
}

// ends tells whether a chunk that has so many packages ends after a group of n of them: the
// more these are, the likelier.
func ends(group string, n, has int) bool {
	h := sha256.Sum256([]byte(group))
	return has >= chunkLeast && uint64(binary.BigEndian.Uint32(h[:]))*(chunkAim-chunkLeast) < uint64(n)<<32
}

// cut divides sorted members into chunks; whole tells that the last group ends the tree.
// Without it, what stands after the last cut is given back.
func cut(ms []Member, whole bool) (cs []Chunk, rest []Member) {
	from := 0
	for i := 0; i < len(ms); {
		j := i + 1
		for j < len(ms) && ms[j].Source == ms[i].Source {
			j++
		}
		if j-i > chunkLarge {
			for k := i; k < j; {
				l := k + 1
				for l < j && ms[l].Name() == ms[k].Name() {
					l++
				}
				if l == j || ends(ms[k].Source+"\x00"+ms[k].Name(), l-k, l-from) {
					cs = append(cs, newChunk(ms[from:l:l]))
					from = l
				}
				k = l
			}
		} else if ends(ms[i].Source, j-i, j-from) {
			cs = append(cs, newChunk(ms[from:j:j]))
			from = j
		}
		i = j
	}
	if whole && from < len(ms) {
		return append(cs, newChunk(ms[from:])), nil
	}
	return cs, ms[from:]
}

// Edit gives the chunks of a tree after a change: of each source package in changes, the
// members that it has now. load reads the members of a chunk; it is asked for those only that
// the change touches.
func Edit(cs []Chunk, changes map[string][]Member, load func(Chunk) ([]Member, error)) (out []Chunk, err error) {
	todo := slices.Sorted(maps.Keys(changes))
	var run []Member // not cut yet
	for i, c := range cs {
		n := 0
		for n < len(todo) && (todo[n] <= c.Last || i == len(cs)-1) {
			n++
		}
		_, again := changes[c.First] // it reaches into this chunk from the one before
		if n == 0 && !again && len(run) == 0 {
			out = append(out, c)
			continue
		}
		ms := c.Members
		if i > 0 && cs[i-1].Last == c.First && !again && len(run) == 0 {
			// All of it is one source package that is cut, and what is new comes behind that.
			out = append(out, c)
			ms = []Member{}
		}
		if ms == nil {
			if ms, err = load(c); err != nil {
				return nil, err
			}
		}
		for _, m := range ms {
			if _, gone := changes[m.Source]; !gone {
				run = append(run, m)
			}
		}
		for _, s := range todo[:n] {
			run = append(run, changes[s]...)
		}
		todo = todo[n:]
		slices.SortFunc(run, order)
		if i+1 < len(cs) && cs[i+1].First == c.Last {
			continue // the group goes on
		}
		var done []Chunk
		done, run = cut(run, i == len(cs)-1)
		out = append(out, done...)
	}
	for _, s := range todo { // there were no chunks
		run = append(run, changes[s]...)
	}
	slices.SortFunc(run, order)
	done, _ := cut(run, true)
	return append(out, done...), nil
}

// BySource is a change that makes a tree of these members.
func BySource(ms []Member) map[string][]Member {
	out := map[string][]Member{}
	for _, m := range ms {
		out[m.Source] = append(out[m.Source], m)
	}
	return out
}

// Place is a package of a stored chunk.
type Place struct{ PkgID, Href string }

// EncodePlaces is the list of a chunk's packages as it is stored, before it is packed.
func EncodePlaces(ms []Member) []byte {
	var b bytes.Buffer
	for _, m := range ms {
		fmt.Fprintf(&b, "%s %s\n", m.PkgID, m.Href)
	}
	return b.Bytes()
}

// DecodePlaces reads what EncodePlaces wrote.
func DecodePlaces(b []byte) (out []Place, err error) {
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		id, href, ok := strings.Cut(sc.Text(), " ")
		if !ok {
			return nil, fault.Internal("chunk_damaged", "a stored list of packages is damaged")
		}
		out = append(out, Place{id, href})
	}
	return out, nil
}

// sourceName is the name in the file name of a source package.
func sourceName(file string) string {
	n, err := rpm.ParseNEVRA(strings.TrimSuffix(file, ".rpm"))
	if err != nil {
		return file
	}
	return n.Name
}

// SourceOf is the source package that a package belongs to: its own name for a source package.
func SourceOf(n rpm.NEVRA, sourceRPM string) string {
	if sourceRPM == "" {
		return n.Name
	}
	return sourceName(sourceRPM)
}

// Same tells whether two lists of chunks hold the same packages.
func Same(a, b []Chunk) bool {
	return slices.EqualFunc(a, b, func(x, y Chunk) bool { return x.ID == y.ID })
}

// IDs is the ids of chunks.
func IDs(cs []Chunk) []string {
	ids := make([]string, len(cs))
	for i, c := range cs {
		ids[i] = c.ID
	}
	return ids
}
