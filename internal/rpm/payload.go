package rpm

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"crypto/md5"  //nolint:gosec // an old digest of the format, compared where a header has no other
	"crypto/sha1" //nolint:gosec // likewise
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"strconv"
	"strings"

	"drover/internal/fault"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz/lzma"
	"github.com/xi2/xz"
)

// MaxWindow bounds the dictionary that a decompressor may take into memory on the word of its
// input: twice that of xz -9, and that of zstd --long.
const MaxWindow = 128 << 20

// PayloadFile is one entry of a payload.
type PayloadFile struct {
	Name string // without a leading "./" or "/"
	Mode uint32
	Size int64 // of the content that follows; 0 for all but the last of a set of hard links
	Ino  uint32
}

// Payload walks the payload and hands every entry to fn, which may read the content and
// must not keep the reader. It unpacks at most limit bytes, file headers counted, and
// writes nothing anywhere. Names that lead out of the root fail with rpm_path, too much
// content with rpm_payload of kind too large, anything broken with rpm_payload. Entries of
// the stripped format ("07070X", files over 4 GiB and packages of format 6) take their
// names from the header. Sets of hard links carry their content with the last name.
func (p *Package) Payload(r io.ReaderAt, limit int64, fn func(PayloadFile, io.Reader) error) error {
	files, err := p.Header.Files()
	if err != nil {
		return err
	}
	raw := bufio.NewReaderSize(io.NewSectionReader(r, p.HeaderEnd, p.Size-p.HeaderEnd), 64<<10)
	if _, err := raw.Peek(1); errors.Is(err, io.EOF) && len(files) == 0 {
		return nil // a package without files may have no payload at all
	}
	c, err := unpack(raw)
	if err != nil {
		return badPayload(p, err)
	}
	defer c.Close()
	lim := &bounded{r: c, left: limit}
	if err := cpio(bufio.NewReaderSize(lim, 64<<10), files, fn); err != nil {
		if lim.left < 0 {
			return fault.TooLarge("rpm_payload", "the payload of %s unpacks to over %d bytes", p.NEVRA(), limit)
		}
		return badPayload(p, err)
	}
	return nil
}

func badPayload(p *Package, err error) error {
	if e := fault.As(err); e.Kind != fault.KindInternal {
		return err
	}
	return fault.Invalid("rpm_payload", "the payload of %s cannot be read", p.NEVRA()).Wrap(err)
}

// bounded ends a stream that unpacks to more than it should.
type bounded struct {
	r    io.Reader
	left int64 // negative once there was more
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, io.ErrShortBuffer
	}
	return n, err
}

// unpack looks at the first bytes: no header's or file name's word on the compressor is
// needed. What none of them starts is taken as it is.
func unpack(r *bufio.Reader) (io.ReadCloser, error) {
	m, err := r.Peek(6)
	if err != nil && len(m) == 0 {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(m, []byte{0x1f, 0x8b}):
		return gzip.NewReader(r)
	case bytes.HasPrefix(m, []byte("BZh")):
		return io.NopCloser(bzip2.NewReader(r)), nil
	case bytes.HasPrefix(m, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		x, err := xz.NewReader(r, MaxWindow)
		return io.NopCloser(x), err
	case bytes.HasPrefix(m, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(MaxWindow), zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(m, []byte{0x5d, 0, 0}):
		// Unlike its xz package, this one takes DictCap for the limit that it is.
		l, err := lzma.ReaderConfig{DictCap: MaxWindow}.NewReader(r)
		return io.NopCloser(l), err
	}
	return io.NopCloser(r), nil
}

// cpioReader reads the cpio formats that rpm writes (cpio(5), "new ASCII", and rpm's
// stripped one).
type cpioReader struct {
	r     *bufio.Reader
	pos   int64
	files []File
	last  map[uint32]int // the last file of each inode: it carries the content of hard links
}

func broken(what string) error { return fault.Invalid("rpm_payload", "broken cpio: %s", what) }

// fill reads all of b. The archive may end nowhere but after its trailer.
func (c *cpioReader) fill(b []byte) error {
	n, err := io.ReadFull(c.r, b)
	c.pos += int64(n)
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (c *cpioReader) align() error {
	n, err := c.r.Discard(int(-c.pos & 3))
	c.pos += int64(n)
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

const trailer = "TRAILER!!!"

// next reads the header of the next entry; a nil one is the end.
func (c *cpioReader) next() (*PayloadFile, error) {
	var m [6]byte
	if err := c.fill(m[:]); err != nil {
		return nil, err
	}
	var f PayloadFile
	switch string(m[:]) {
	case "07070X":
		var idx [8]byte
		if err := c.fill(idx[:]); err != nil {
			return nil, err
		}
		n, err := strconv.ParseUint(string(idx[:]), 16, 32)
		if err != nil || n >= uint64(len(c.files)) {
			return nil, broken("a stripped entry of no file")
		}
		h := c.files[n]
		f = PayloadFile{Name: h.Path, Mode: uint32(h.Mode), Ino: h.Inode}
		if h.Mode&modeType == modeLink || h.IsRegular() && c.last[h.Inode] == int(n) {
			f.Size = int64(h.Size)
		}
	case "070701", "070702":
		var h [104]byte
		if err := c.fill(h[:]); err != nil {
			return nil, err
		}
		var v [13]uint64
		for i := range v {
			var err error
			if v[i], err = strconv.ParseUint(string(h[i*8:i*8+8]), 16, 32); err != nil {
				return nil, broken("a field is no number")
			}
		}
		f = PayloadFile{Ino: uint32(v[0]), Mode: uint32(v[1]), Size: int64(v[6])}
		if v[11] == 0 || v[11] > 4<<10 {
			return nil, broken("a name of wrong length")
		}
		name := make([]byte, v[11])
		if err := c.fill(name); err != nil {
			return nil, err
		}
		if bytes.IndexByte(name, 0) != len(name)-1 {
			return nil, broken("a name that ends early or not at all")
		}
		f.Name = string(name[:len(name)-1])
	default:
		return nil, broken("wrong magic")
	}
	if err := c.align(); err != nil {
		return nil, err
	}
	if f.Name == trailer {
		return nil, nil
	}
	f.Name = strings.TrimPrefix(strings.TrimPrefix(f.Name, "./"), "/")
	if f.Name == "." {
		f.Name = "" // the root itself, of packages such as filesystem
	}
	if !cleanPath(f.Name) && (f.Name != "" || f.Mode&modeType != modeDir) {
		return nil, badPath("the payload", f.Name)
	}
	return &f, nil
}

func cpio(r *bufio.Reader, files []File, fn func(PayloadFile, io.Reader) error) error {
	c := &cpioReader{r: r, files: files, last: make(map[uint32]int, len(files))}
	for i, f := range files {
		if f.Flags&FileGhost == 0 && f.IsRegular() {
			c.last[f.Inode] = i
		}
	}
	// The entries are the header's files: one more than those is none of them.
	for range len(files) + 1 {
		f, err := c.next()
		if err != nil || f == nil {
			return err
		}
		body := &io.LimitedReader{R: r, N: f.Size}
		if fn != nil {
			if err := fn(*f, body); err != nil {
				return err
			}
		}
		if _, err := io.Copy(io.Discard, body); err != nil {
			return err
		}
		if body.N > 0 {
			return io.ErrUnexpectedEOF
		}
		c.pos += f.Size
		if err := c.align(); err != nil {
			return err
		}
	}
	return broken("more entries than the header has files")
}

// PayloadDigests is the name and hex sha256 of every regular file in the payload. Every
// name of a set of hard links has the digest of their content.
func (p *Package) PayloadDigests(r io.ReaderAt, limit int64) (map[string]string, error) {
	out := map[string]string{}
	links := map[uint32][]string{} // names whose content is still to come, if they have any
	err := p.Payload(r, limit, func(f PayloadFile, body io.Reader) error {
		if f.Mode&modeType != modeRegular {
			return nil
		}
		if _, ok := out[f.Name]; ok {
			return broken("a name comes twice")
		}
		h := sha256.New()
		if _, err := io.Copy(h, body); err != nil {
			return err
		}
		sum := hex.EncodeToString(h.Sum(nil))
		out[f.Name] = sum
		if f.Size == 0 {
			links[f.Ino] = append(links[f.Ino], f.Name)
			return nil
		}
		for _, n := range links[f.Ino] {
			out[n] = sum
		}
		delete(links, f.Ino)
		return nil
	})
	return out, err
}

// VerifyPayload unpacks the payload, at most limit bytes of it, and compares it with the
// header: every entry is a file that the header names, every file that the header promises
// is there once, and contents, link targets and types are those of the header. With
// VerifyDigests before it, nothing of the file is left unchecked.
func (p *Package) VerifyPayload(r io.ReaderAt, limit int64) error {
	files, err := p.Header.Files()
	if err != nil {
		return err
	}
	wrong := func(path, what string) error {
		return fault.Invalid("rpm_digest", "%s: the file %.200q of the payload is not the header's: %s", p.NEVRA(), path, what).
			Fix("the package was put together by hand; build it with rpmbuild")
	}
	want := make(map[string]int, len(files))
	for i, f := range files {
		want[strings.TrimPrefix(f.Path, "/")] = i
	}
	if len(want) != len(files) {
		return bad("%s names a file twice", p.NEVRA())
	}
	algo := p.Header.Int(FileDigAlgo)
	seen := make([]bool, len(files))
	pending := map[uint32][]int{} // hard links whose content is still to come
	err = p.Payload(r, limit, func(f PayloadFile, body io.Reader) error {
		i, ok := want[f.Name]
		if !ok {
			return wrong(f.Name, "it has no such file")
		}
		h := files[i]
		if seen[i] {
			return wrong(f.Name, "it comes twice")
		}
		seen[i] = true
		if uint16(f.Mode)&modeType != h.Mode&modeType {
			return wrong(f.Name, "its type differs")
		}
		switch {
		case h.Mode&modeType == modeLink:
			b, err := io.ReadAll(io.LimitReader(body, int64(len(h.Linkto))+1))
			if err != nil {
				return err
			}
			if string(b) != h.Linkto {
				return wrong(f.Name, "its target differs")
			}
		case h.IsRegular():
			if f.Size == 0 && h.Size > 0 {
				pending[f.Ino] = append(pending[f.Ino], i)
				return nil
			}
			var d hash.Hash
			switch algo {
			case 0, digestMD5:
				d = md5.New() //nolint:gosec // as the header has it
			case digestSHA1:
				d = sha1.New() //nolint:gosec // as the header has it
			default:
				d = newDigest(algo)
			}
			if d == nil {
				return bad("%s has file digests of unknown algorithm %d", p.NEVRA(), algo)
			}
			if _, err := io.Copy(d, body); err != nil {
				return err
			}
			sum := hex.EncodeToString(d.Sum(nil))
			for _, n := range append(pending[f.Ino], i) {
				if files[n].Size != uint64(f.Size) || files[n].Digest != sum && (files[n].Digest != "" || f.Size != 0) {
					return wrong(files[n].Path, "its content differs")
				}
			}
			delete(pending, f.Ino)
		case f.Size != 0:
			return wrong(f.Name, "it has content")
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, is := range pending {
		return wrong(files[is[0]].Path, "its content is missing")
	}
	for i, f := range files {
		if !seen[i] && f.Flags&FileGhost == 0 {
			return wrong(f.Path, "it is missing")
		}
	}
	return nil
}

// cleanPath tells whether a relative path stays below where it starts and is written in one
// way only.
func cleanPath(s string) bool {
	if s == "" || strings.ContainsAny(s, "\x00\n") {
		return false
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == ".." || part == "." || part == "" {
			return false
		}
	}
	return true
}

func badPath(where, name string) error {
	return fault.Invalid("rpm_path", "%s holds a file named %.200q", where, name).Fix("a package must not name files outside its place")
}

// CheckPaths refuses a package whose file names leave the place where they belong: a binary
// package has absolute clean paths, a source package plain names; no name comes twice.
// Errors have code rpm_path.
func (p *Package) CheckPaths() error {
	files, err := p.Header.Files()
	if err != nil {
		return err
	}
	seen := make(map[string]struct{}, len(files))
	for _, f := range files {
		rel, ok := strings.CutPrefix(f.Path, "/")
		if p.Header.IsSource() {
			rel, ok = f.Path, !strings.Contains(f.Path, "/")
		}
		// The root itself is a file of packages such as filesystem.
		if !ok || !cleanPath(rel) && f.Path != "/" {
			return badPath(p.NEVRA().String(), f.Path)
		}
		if _, ok := seen[f.Path]; ok {
			return bad("%s names %.200q twice", p.NEVRA(), f.Path)
		}
		seen[f.Path] = struct{}{}
	}
	return nil
}
