package repo

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

	"drover/internal/fault"
	"drover/internal/rpm"
)

// member is a package at its place in a tree.
type member struct {
	Package
	href string
}

// location is where the trees of tags have a package. The first letters of the id keep two
// signatures of one file apart.
func (p Package) location() string { return "Packages/" + p.PkgID[:12] + "/" + p.File }

// less orders the members of a tree: by source package, so that a build lies together, then by
// name, arch and version.
func order(a, b member) int {
	if c := cmp.Or(strings.Compare(a.Source, b.Source), strings.Compare(a.name(), b.name()), strings.Compare(a.Arch, b.Arch)); c != 0 {
		return c
	}
	return cmp.Or(strings.Compare(a.NEVRA, b.NEVRA), strings.Compare(a.PkgID, b.PkgID), strings.Compare(a.href, b.href))
}

// name is the package's name: its NEVRA up to the dash before the version.
func (p Package) name() string {
	s := p.NEVRA
	if i := strings.LastIndexByte(s, '-'); i > 0 {
		s = s[:i]
	}
	if i := strings.LastIndexByte(s, '-'); i > 0 {
		s = s[:i]
	}
	return s
}

// chunk is a run of members. A tree is a list of them, cut where the source packages' names
// say so: a change of one source package changes one chunk, and trees that hold the same
// packages have the same chunks, however they came about.
type chunk struct {
	id          string // sha256 over its packages and their places
	n           int
	first, last string // source packages
	bytes       int64  // of its packages
	built       int64  // when the newest was, seconds since 1970
	members     []member
}

// chunkAim is how many packages a chunk has on average: with fewer the metadata packs worse,
// with more a change costs more. The first half of them is never cut, so that chunks are more
// alike. A source package of more than chunkLarge packages is cut too.
const (
	chunkAim   = 128
	chunkLeast = chunkAim / 2
	chunkLarge = 2 * chunkAim
)

func newChunk(ms []member) chunk {
	h := sha256.New()
	c := chunk{n: len(ms), first: ms[0].Source, last: ms[len(ms)-1].Source, members: ms}
	for _, m := range ms {
		fmt.Fprintf(h, "%s %s\n", m.PkgID, m.href)
		c.bytes += m.Size
		c.built = max(c.built, m.Built)
	}
	c.id = hex.EncodeToString(h.Sum(nil))
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
func cut(ms []member, whole bool) (cs []chunk, rest []member) {
	from := 0
	for i := 0; i < len(ms); {
		j := i + 1
		for j < len(ms) && ms[j].Source == ms[i].Source {
			j++
		}
		if j-i > chunkLarge {
			for k := i; k < j; {
				l := k + 1
				for l < j && ms[l].name() == ms[k].name() {
					l++
				}
				if l == j || ends(ms[k].Source+"\x00"+ms[k].name(), l-k, l-from) {
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

// edit gives the chunks of a tree after a change: of each source package in changes, the
// members that it has now. load reads the members of a chunk; it is asked for those only that
// the change touches.
func edit(cs []chunk, changes map[string][]member, load func(chunk) ([]member, error)) (out []chunk, err error) {
	todo := slices.Sorted(maps.Keys(changes))
	var run []member // not cut yet
	for i, c := range cs {
		n := 0
		for n < len(todo) && (todo[n] <= c.last || i == len(cs)-1) {
			n++
		}
		_, again := changes[c.first] // it reaches into this chunk from the one before
		if n == 0 && !again && len(run) == 0 {
			out = append(out, c)
			continue
		}
		ms := c.members
		if i > 0 && cs[i-1].last == c.first && !again && len(run) == 0 {
			// All of it is one source package that is cut, and what is new comes behind that.
			out = append(out, c)
			ms = []member{}
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
		if i+1 < len(cs) && cs[i+1].first == c.last {
			continue // the group goes on
		}
		var done []chunk
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

// bySource is a change that makes a tree of these members.
func bySource(ms []member) map[string][]member {
	out := map[string][]member{}
	for _, m := range ms {
		out[m.Source] = append(out[m.Source], m)
	}
	return out
}

// place is a package of a stored chunk.
type place struct{ pkgid, href string }

// encodePlaces is the list of a chunk's packages as it is stored, before it is packed.
func encodePlaces(ms []member) []byte {
	var b bytes.Buffer
	for _, m := range ms {
		fmt.Fprintf(&b, "%s %s\n", m.PkgID, m.href)
	}
	return b.Bytes()
}

func decodePlaces(b []byte) (out []place, err error) {
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		id, href, ok := strings.Cut(sc.Text(), " ")
		if !ok {
			return nil, fault.Internal("chunk_damaged", "a stored list of packages is damaged")
		}
		out = append(out, place{id, href})
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

// sourceOf is the source package that a package belongs to: its own name for a source package.
func sourceOf(n rpm.NEVRA, sourceRPM string) string {
	if sourceRPM == "" {
		return n.Name
	}
	return sourceName(sourceRPM)
}
