package rpm

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"strconv"
	"strings"

	"drover/internal/fault"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// PayloadFile is one entry of a payload.
type PayloadFile struct {
	Name string // without a leading "./" or "/"
	Mode uint32
	Size int64
}

// Payload walks the payload and hands every entry to fn. It unpacks at most limit bytes and
// writes nothing anywhere. Names are checked: one that leads out of the root is refused.
// Entries of the stripped format ("07070X", files over 4 GiB) take their names from the
// header.
func (p *Package) Payload(r io.ReaderAt, limit int64, fn func(PayloadFile, io.Reader) error) error {
	raw := bufio.NewReaderSize(io.NewSectionReader(r, p.HeaderEnd, p.Size-p.HeaderEnd), 256<<10)
	c, err := decompress(raw)
	if err != nil {
		return badPayload(p, err)
	}
	defer c.Close()
	files, err := p.Header.Files()
	if err != nil {
		return err
	}
	lim := &bounded{r: c, left: limit}
	if err := cpio(bufio.NewReaderSize(lim, 256<<10), files, fn); err != nil {
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
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, io.ErrShortBuffer
	}
	return n, err
}

// decompress looks at the first bytes: the header's word on the compressor is not needed.
func decompress(r *bufio.Reader) (io.ReadCloser, error) {
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
		x, err := xz.ReaderConfig{DictCap: 128 << 20}.NewReader(r)
		return io.NopCloser(x), err
	case bytes.HasPrefix(m, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxMemory(256<<20), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(m, []byte("0707")):
		return io.NopCloser(r), nil
	case bytes.HasPrefix(m, []byte{0x5d, 0, 0}):
		l, err := lzma.ReaderConfig{DictCap: 128 << 20}.NewReader(r)
		return io.NopCloser(l), err
	}
	return nil, fault.Invalid("rpm_payload", "a payload of unknown compression: %x", m)
}

func cpio(r *bufio.Reader, files []File, fn func(PayloadFile, io.Reader) error) error {
	broken := func(what string) error { return fault.Invalid("rpm_payload", "broken cpio: %s", what) }
	// Of hard links, the last one carries the content.
	last := make(map[uint32]int, len(files))
	for i, f := range files {
		if f.Flags&FileGhost == 0 && f.Mode&0o170000 == 0o100000 {
			last[f.Inode] = i
		}
	}
	var pos int64
	skip := func(n int64) error {
		d, err := io.CopyN(io.Discard, r, n)
		pos += d
		return err
	}
	for {
		var m [6]byte
		if _, err := io.ReadFull(r, m[:]); err != nil {
			return err
		}
		pos += 6
		var f PayloadFile
		switch string(m[:]) {
		case "07070X":
			var idx [8]byte
			if _, err := io.ReadFull(r, idx[:]); err != nil {
				return err
			}
			pos += 8
			n, err := strconv.ParseUint(string(idx[:]), 16, 32)
			if err != nil || n >= uint64(len(files)) {
				return broken("a stripped entry of no file")
			}
			f = PayloadFile{Name: files[n].Path, Mode: uint32(files[n].Mode), Size: int64(files[n].Size)}
			switch f.Mode & 0o170000 {
			case 0o100000:
				if last[files[n].Inode] != int(n) {
					f.Size = 0
				}
			case 0o120000: // the target is the content
			default:
				f.Size = 0
			}
		case "070701", "070702":
			var h [104]byte
			if _, err := io.ReadFull(r, h[:]); err != nil {
				return err
			}
			pos += 104
			var v [13]uint64
			for i := range v {
				var err error
				if v[i], err = strconv.ParseUint(string(h[i*8:i*8+8]), 16, 32); err != nil {
					return broken("a field is no number")
				}
			}
			f = PayloadFile{Mode: uint32(v[1]), Size: int64(v[6])}
			if v[11] == 0 || v[11] > 64<<10 {
				return broken("a name of wrong length")
			}
			name := make([]byte, v[11])
			if _, err := io.ReadFull(r, name); err != nil {
				return err
			}
			pos += int64(len(name))
			f.Name, _, _ = strings.Cut(string(name), "\x00")
		default:
			return broken("wrong magic")
		}
		if err := skip(-pos & 3); err != nil {
			return err
		}
		if f.Name == "TRAILER!!!" {
			return nil
		}
		f.Name = strings.TrimPrefix(strings.TrimPrefix(f.Name, "."), "/")
		for part := range strings.SplitSeq(f.Name, "/") {
			if part == ".." {
				return fault.Invalid("rpm_path", "the payload holds a file named %.200q", f.Name).Fix("a package must not name files outside its place")
			}
		}
		cr := &counting{r: io.LimitReader(r, f.Size)}
		if fn != nil {
			if err := fn(f, cr); err != nil {
				return err
			}
		}
		if _, err := io.Copy(io.Discard, cr); err != nil {
			return err
		}
		if cr.n != f.Size {
			return io.ErrUnexpectedEOF
		}
		pos += f.Size
		if err := skip(-pos & 3); err != nil {
			return err
		}
	}
}

type counting struct {
	r io.Reader
	n int64
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// PayloadDigests is the name and hex sha256 of every regular file in the payload. The last
// entry of a set of hard links carries the content; the others have size 0.
func (p *Package) PayloadDigests(r io.ReaderAt, limit int64) (map[string]string, error) {
	out := map[string]string{}
	err := p.Payload(r, limit, func(f PayloadFile, body io.Reader) error {
		if f.Mode&0o170000 != 0o100000 {
			return nil
		}
		h := sha256.New()
		if _, err := io.Copy(h, body); err != nil {
			return err
		}
		out[f.Name] = hex.EncodeToString(h.Sum(nil))
		return nil
	})
	return out, err
}
