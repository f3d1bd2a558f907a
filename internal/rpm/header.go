package rpm

import (
	"bytes"
	"encoding/binary"
	"iter"

	"drover/internal/fault"
)

// Limits of a header, those of librpm (lib/header.c).
const (
	maxEntries = 0xffff
	maxStore   = 256<<20 - 1
	maxArray   = 0xfffff // values of one entry, but for binary ones
	introSize  = 16
	entrySize  = 16
)

var magic = [8]byte{0x8e, 0xad, 0xe8, 0x01, 0, 0, 0, 0}

// Header is a view of a header's bytes. It copies nothing: what it gives out as bytes
// shares the memory it was made of, which must not change. Looking values up allocates
// nothing; only the accessors that return strings and slices of structs do.
type Header struct {
	raw    []byte // intro, index and store
	index  []byte
	store  []byte
	sorted bool // tags rise: they can be searched
}

func bad(format string, args ...any) error {
	return fault.Invalid("rpm_header", "bad RPM header: "+format, args...).Fix("the file is damaged or no RPM; fetch or build it again")
}

// headerSize reads the intro: the size of the whole header in bytes.
func headerSize(intro []byte) (size int, err error) {
	if len(intro) < introSize {
		return 0, bad("cut in the intro")
	}
	if !bytes.Equal(intro[:8], magic[:]) {
		return 0, bad("wrong magic %x", intro[:8])
	}
	il, dl := binary.BigEndian.Uint32(intro[8:]), binary.BigEndian.Uint32(intro[12:])
	if il == 0 || il > maxEntries {
		return 0, bad("%d entries", il)
	}
	if dl > maxStore {
		return 0, bad("a store of %d bytes", dl)
	}
	return introSize + int(il)*entrySize + int(dl), nil
}

// ParseHeader checks the header at the start of b and returns a view of it and its size in
// bytes; what follows it in b is left alone. It checks what librpm checks before it trusts a
// header: the intro, the region tag and its trailer, and of every entry type, alignment,
// count and bounds; strings end in the store; values of entries don't overlap, which also
// bounds the work to one pass over the bytes. Beyond librpm, no tag may come twice, so that
// no two readers can disagree on its value. Errors have code rpm_header.
func ParseHeader(b []byte) (Header, int, error) { return parseHeader(b, false) }

// ParseInstalled checks a header as an rpm database keeps it, in the blobs of its table
// Packages: without magic, and with what rpm noted when it installed the package (time, file
// states, the signature's tags) as entries behind the region, which replace those of the same
// tag in it. Errors have code rpm_header.
func ParseInstalled(blob []byte) (Header, error) {
	h, size, err := parseHeader(append(magic[:], blob...), true)
	if err == nil && size != len(magic)+len(blob) {
		err = bad("%d bytes follow the header", len(magic)+len(blob)-size)
	}
	return h, err
}

func parseHeader(b []byte, installed bool) (Header, int, error) {
	size, err := headerSize(b)
	if err != nil {
		return Header{}, 0, err
	}
	if size > len(b) {
		return Header{}, 0, bad("%d bytes announced, %d there", size, len(b))
	}
	il := int(binary.BigEndian.Uint32(b[8:]))
	h := Header{raw: b[:size:size], index: b[introSize : introSize+il*entrySize], store: b[introSize+il*entrySize : size : size], sorted: true}
	first, covered, limit := 0, il, len(h.store)
	if t := h.entry(0).tag; t == SigRegion || t == RegionImmutable {
		if covered, limit, err = h.region(t, installed); err != nil {
			return Header{}, 0, err
		}
		first = 1
	}
	var end int
	var last Tag
	for i := first; i < il; i++ {
		if i == covered { // the entries behind the region start over
			end, limit = limit+entrySize, len(h.store)
		}
		e := h.entry(i)
		if e.tag < I18NTable {
			return Header{}, 0, bad("tag %d out of place", e.tag)
		}
		if int64(e.offset) < int64(end) || int64(e.offset) >= int64(limit) {
			return Header{}, 0, bad("tag %d lies outside its part of the store", e.tag)
		}
		n, err := h.length(e, limit)
		if err != nil {
			return Header{}, 0, err
		}
		end = int(e.offset) + n
		h.sorted = h.sorted && e.tag > last
		last = e.tag
	}
	if !h.sorted && !installed {
		if err := h.unique(); err != nil {
			return Header{}, 0, err
		}
	}
	return h, size, nil
}

// unique finds repeated tags in an index that is not sorted.
func (h Header) unique() error {
	seen := make(map[Tag]struct{}, h.Len())
	for i := range h.Len() {
		t := h.entry(i).tag
		if _, ok := seen[t]; ok {
			return bad("tag %d comes twice", t)
		}
		seen[t] = struct{}{}
	}
	return nil
}

// region checks the first entry, a region tag, and returns how many entries it covers and
// where in the store its trailer starts. The trailer must say that the region covers the
// whole index, unless the header is an installed one: what lies outside it is covered by no
// signature and belongs in no package file.
func (h Header) region(tag Tag, installed bool) (entries, trailer int, err error) {
	e := h.entry(0)
	if e.typ != TypeBin || e.count != entrySize || uint64(e.offset)+entrySize > uint64(len(h.store)) {
		return 0, 0, bad("the region tag is no region")
	}
	t := h.store[e.offset : e.offset+entrySize]
	// rpm 4 wrote "61" (image) into the trailers of signature headers for a time.
	if got := Tag(binary.BigEndian.Uint32(t)); got != tag && (tag != SigRegion || got != 61) {
		return 0, 0, bad("the region's trailer is of tag %d", got)
	}
	if binary.BigEndian.Uint32(t[4:]) != TypeBin || binary.BigEndian.Uint32(t[12:]) != entrySize {
		return 0, 0, bad("the region's trailer is none")
	}
	covered := -int64(int32(binary.BigEndian.Uint32(t[8:])))
	if covered < entrySize || covered > int64(len(h.index)) || covered%entrySize != 0 || covered < int64(len(h.index)) && !installed {
		return 0, 0, bad("the region covers %d bytes of an index of %d", covered, len(h.index))
	}
	if int(e.offset)+entrySize != len(h.store) && !installed {
		return 0, 0, bad("%d bytes lie behind the region", len(h.store)-int(e.offset)-entrySize)
	}
	return int(covered / entrySize), int(e.offset), nil
}

// entry is one line of the index.
type entry struct {
	tag    Tag
	typ    uint32
	offset uint32
	count  uint32
}

func (h Header) entry(i int) entry {
	e := h.index[i*entrySize : i*entrySize+entrySize]
	return entry{Tag(binary.BigEndian.Uint32(e)), binary.BigEndian.Uint32(e[4:]), binary.BigEndian.Uint32(e[8:]), binary.BigEndian.Uint32(e[12:])}
}

// widths is the size of one value by type, 0 for strings.
var widths = [10]uint8{0, 1, 1, 2, 4, 8, 0, 1, 0, 0}

func width(typ uint32) int {
	if typ > TypeI18N {
		return 0
	}
	return int(widths[typ])
}

func isText(typ uint32) bool { return typ == TypeString || typ == TypeArray || typ == TypeI18N }

// length is the number of bytes that the values of an entry take, which must lie before
// limit.
func (h Header) length(e entry, limit int) (int, error) {
	if e.typ < TypeChar || e.typ > TypeI18N {
		return 0, bad("tag %d has type %d", e.tag, e.typ)
	}
	if e.count == 0 || uint64(e.count) > uint64(limit) || e.count > maxArray && e.typ != TypeBin {
		return 0, bad("tag %d has %d values", e.tag, e.count)
	}
	if w := uint64(width(e.typ)); w > 0 {
		if uint64(e.offset)+uint64(e.count)*w > uint64(limit) {
			return 0, bad("tag %d has %d values, more than the store holds", e.tag, e.count)
		}
		if uint64(e.offset)%w != 0 {
			return 0, bad("tag %d is not aligned", e.tag)
		}
		return int(uint64(e.count) * w), nil
	}
	if e.typ == TypeString && e.count != 1 {
		return 0, bad("tag %d has %d strings", e.tag, e.count)
	}
	at := int(e.offset)
	for range e.count {
		n := bytes.IndexByte(h.store[at:limit], 0)
		if n < 0 {
			return 0, bad("a string of tag %d does not end", e.tag)
		}
		at += n + 1
	}
	return at - int(e.offset), nil
}

// Len is the number of entries, the region tag counted.
func (h Header) Len() int { return len(h.index) / entrySize }

// Raw is the whole header: intro, index and store. It is what header signatures and
// header digests cover when it is a package's main header.
func (h Header) Raw() []byte { return h.raw }

// Each gives every entry: its tag, type and number of values, in the order of the index.
func (h Header) Each(fn func(tag Tag, typ uint32, count int)) {
	for i := range h.Len() {
		e := h.entry(i)
		fn(e.tag, e.typ, int(e.count))
	}
}

// find looks a tag up. Indexes are sorted by tag in every package that rpm wrote since
// 1997, but nothing enforces it. Where a tag comes again, in an installed header, the last
// counts: what stands behind the region replaces what is in it.
func (h Header) find(tag Tag) (entry, bool) {
	if h.sorted {
		lo, hi := 0, len(h.index)/entrySize
		for lo < hi {
			mid := int(uint(lo+hi) >> 1)
			if Tag(binary.BigEndian.Uint32(h.index[mid*entrySize:])) < tag {
				lo = mid + 1
			} else {
				hi = mid
			}
		}
		if lo < h.Len() {
			if e := h.entry(lo); e.tag == tag {
				return e, true
			}
		}
		return entry{}, false
	}
	for i := h.Len() - 1; i >= 0; i-- {
		if e := h.entry(i); e.tag == tag {
			return e, true
		}
	}
	return entry{}, false
}

// Has tells whether the header has the tag.
func (h Header) Has(tag Tag) bool { _, ok := h.find(tag); return ok }

// cstring is the string at the start of b, which ends in it.
func cstring(b []byte) []byte { return b[:bytes.IndexByte(b, 0)] }

// Bytes is the value of a binary tag, or nil.
func (h Header) Bytes(tag Tag) []byte {
	e, ok := h.find(tag)
	if !ok || e.typ != TypeBin && e.typ != TypeChar && e.typ != TypeInt8 {
		return nil
	}
	return h.store[e.offset : e.offset+e.count : e.offset+e.count]
}

// Text is the first string of a tag, of whatever string type, as bytes of the header; nil
// when there is none. For a translated tag it is the C locale's.
func (h Header) Text(tag Tag) []byte {
	e, ok := h.find(tag)
	if !ok || !isText(e.typ) {
		return nil
	}
	return cstring(h.store[e.offset:])
}

// String is Text, copied.
func (h Header) String(tag Tag) string { return string(h.Text(tag)) }

// walk goes over the strings of a tag without copying: Next, then cur, as bytes of the header.
type walk struct {
	rest []byte
	cur  []byte
	left uint32
}

// Next goes to the next string, the first one at first, and tells whether there is one.
func (w *walk) Next() bool {
	if w.left == 0 {
		w.cur = nil
		return false
	}
	w.left--
	n := bytes.IndexByte(w.rest, 0)
	w.cur, w.rest = w.rest[:n], w.rest[n+1:]
	return true
}

// walk starts a walk over the strings of a tag.
func (h Header) walk(tag Tag) walk {
	e, ok := h.find(tag)
	if !ok || !isText(e.typ) {
		return walk{}
	}
	return walk{rest: h.store[e.offset:], left: e.count}
}

// Texts gives the strings of a tag one by one as bytes of the header.
func (h Header) Texts(tag Tag) iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		w := h.walk(tag)
		for i := 0; w.Next(); i++ {
			if !yield(i, w.cur) {
				return
			}
		}
	}
}

// Count is the number of values of a tag.
func (h Header) Count(tag Tag) int {
	e, _ := h.find(tag)
	return int(e.count)
}

// Strings is all strings of a tag, copied.
func (h Header) Strings(tag Tag) []string {
	w := h.walk(tag)
	if w.left == 0 {
		return nil
	}
	out := make([]string, 0, min(w.left, 1<<12))
	for w.Next() {
		out = append(out, string(w.cur))
	}
	return out
}

// Ints is a number tag of any width, read without copying.
type Ints struct {
	data  []byte
	width int
}

// Len is the number of values.
func (n Ints) Len() int {
	if n.width == 0 {
		return 0
	}
	return len(n.data) / n.width
}

// At is value i, or 0 outside.
func (n Ints) At(i int) uint64 {
	if i < 0 || i >= n.Len() {
		return 0
	}
	b := n.data[i*n.width:]
	switch n.width {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.BigEndian.Uint16(b))
	case 4:
		return uint64(binary.BigEndian.Uint32(b))
	}
	return binary.BigEndian.Uint64(b)
}

// Ints is the numbers of a tag, of 8, 16, 32 or 64 bits; none when it holds no numbers.
func (h Header) Ints(tag Tag) Ints {
	e, ok := h.find(tag)
	if !ok || e.typ == TypeBin {
		return Ints{}
	}
	w := width(e.typ)
	if w == 0 {
		return Ints{}
	}
	return Ints{h.store[e.offset : int(e.offset)+int(e.count)*w], w}
}

// Int is the first number of a tag, or 0.
func (h Header) Int(tag Tag) uint64 { return h.Ints(tag).At(0) }

// NEVRA is the package's name, epoch, version, release and arch. A source package has the
// arch "src", as in repository metadata.
func (h Header) NEVRA() NEVRA {
	n := NEVRA{Name: h.String(Name), Epoch: uint32(h.Int(Epoch)), Version: h.String(Version), Release: h.String(Release)}
	if h.IsSource() {
		n.Arch = "src"
	} else {
		n.Arch = h.String(Arch)
	}
	return n
}

// IsSource tells whether the header is of a source package: it says so, or names no source
// RPM.
func (h Header) IsSource() bool { return h.Has(SourcePkg) || !h.Has(SourceRPM) }

// Change is one changelog entry.
type Change struct {
	Time   uint64 // seconds since 1970
	Author string
	Text   string
}

// Changes is the changelog, newest first as packages have it.
func (h Header) Changes() []Change {
	var out []Change
	times, names, texts := h.Ints(ChangeTime), h.walk(ChangeName), h.walk(ChangeText)
	for i := 0; i < times.Len() && names.Next() && texts.Next(); i++ {
		out = append(out, Change{times.At(i), string(names.cur), string(texts.cur)})
	}
	return out
}
