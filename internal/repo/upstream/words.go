package upstream

import (
	"errors"
	"io"
	"os"

	"drover/internal/durable"
	"drover/internal/fault"
	"drover/internal/rpm"

	"github.com/klauspost/compress/zstd"
)

// Words is what metadata says of packages, in a file without a name: of a large repository it is
// more than belongs into memory.
type Words struct {
	f    *os.File
	size int64
	at   map[string]*[3]span
	pack *zstd.Encoder
	open *zstd.Decoder
}

type span struct {
	off int64
	n   int
}

// ReadWords reads the three metadata files that list packages, for the packages that are wanted.
// The caller closes it.
func ReadWords(dir string, want map[string]bool, file func(rpm.Kind) (io.ReadCloser, error)) (w *Words, err error) {
	f, err := os.CreateTemp(dir, "words-")
	if err != nil {
		return nil, durable.Full(dir, err)
	}
	w = &Words{f: f, at: map[string]*[3]span{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	if err := os.Remove(f.Name()); err != nil {
		return w, err
	}
	if w.pack, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest)); err != nil {
		return w, err
	}
	if w.open, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxWord)); err != nil {
		return w, err
	}
	for k := range rpm.KindOther + 1 {
		in, err := file(k)
		if err != nil {
			return w, err
		}
		var buf []byte
		err = rpm.ReadEntries(in, k, func(e rpm.Entry) error {
			if !want[e.PkgID] {
				return nil
			}
			if w.at[e.PkgID] == nil {
				w.at[e.PkgID] = &[3]span{}
			}
			buf = w.pack.EncodeAll(e.XML, buf[:0])
			if _, err := f.WriteAt(buf, w.size); err != nil {
				return durable.Full(dir, err)
			}
			w.at[e.PkgID][k] = span{w.size, len(buf)}
			w.size += int64(len(buf))
			return nil
		})
		if err := errors.Join(err, in.Close()); err != nil {
			return w, err
		}
	}
	return w, nil
}

const maxWord = 128 << 20

// Of is the template of a package, from what was said of it. One goroutine at a time.
func (w *Words) Of(p rpm.PrimaryPackage) (rpm.Template, error) {
	var said [3][]byte
	for k := range said {
		at := w.at[p.Sum]
		if at == nil || at[k].n == 0 {
			return rpm.Template{}, fault.Invalid("mirror_words", "the %s file says nothing of %.200q", rpm.Kind(k), p.Href).Fix("the repository is broken: ask upstream")
		}
		raw := make([]byte, at[k].n)
		if _, err := w.f.ReadAt(raw, at[k].off); err != nil {
			return rpm.Template{}, err
		}
		var err error
		if said[k], err = w.open.DecodeAll(raw, nil); err != nil {
			return rpm.Template{}, err
		}
	}
	if t, ok := rpm.Reuse(said[0], said[1], said[2], p); ok {
		return t, nil
	}
	return rpm.Verbatim(said[0], said[1], said[2]), nil
}

// Close gives the disk space back.
func (w *Words) Close() error {
	if w.pack != nil {
		_ = w.pack.Close()
	}
	if w.open != nil {
		w.open.Close()
	}
	return w.f.Close()
}
