package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"drover/internal/durable"
	"drover/internal/fault"
)

// intake takes the bytes of one put: it counts, bounds, hashes and, when file is
// set, writes them.
type intake struct {
	PutOptions
	sum  hash.Hash
	size int64
	file *os.File // nil while nothing has to be written
}

func newIntake(o PutOptions) (*intake, error) {
	if o.Expect != "" {
		if _, err := Parse(string(o.Expect)); err != nil {
			return nil, err
		}
	}
	return &intake{PutOptions: o, sum: sha256.New()}, nil
}

// add takes p. It does not write to file: see addAll and putSmall.
func (in *intake) add(p []byte) error {
	in.size += int64(len(p))
	if in.Max > 0 && in.size > in.Max {
		return tooLarge(in.Max)
	}
	in.sum.Write(p)
	if in.Tee != nil {
		if _, err := in.Tee.Write(p); err != nil {
			return err
		}
	}
	return nil
}

// addAll takes the first n bytes of buf and then all that r yields, and writes
// them to file if there is one.
func (in *intake) addAll(ctx context.Context, r io.Reader, buf []byte, n int) error {
	for last := false; ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := in.add(buf[:n]); err != nil {
			return err
		}
		if in.file != nil {
			if _, err := in.file.Write(buf[:n]); err != nil {
				return durable.Full(filepath.Dir(in.file.Name()), err)
			}
		}
		if last {
			return nil
		}
		var err error
		n, err = io.ReadFull(r, buf)
		last = errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			return fmt.Errorf("read: %w", err)
		}
	}
}

// dropOn removes and closes file when err is not nil.
func (in *intake) dropOn(err error) error {
	if err == nil || in.file == nil {
		return err
	}
	rerr := os.Remove(in.file.Name())
	if errors.Is(rerr, fs.ErrNotExist) { // it has its name already
		rerr = nil
	}
	return errors.Join(err, rerr, in.file.Close())
}

// check asks whether the bytes are what was announced.
func (in *intake) check() error {
	d := in.digest()
	if in.Expect != "" && d != in.Expect {
		return fault.Invalid("digest_mismatch", "the bytes have sha256 %s, but %s was announced", d, in.Expect).
			Fix("the content was damaged on the way or the digest is another file's: check the file and send it again")
	}
	if in.Check != nil {
		return in.Check(d, in.size)
	}
	return nil
}

// digest is the sha256 of the bytes so far.
func (in *intake) digest() Digest {
	return Digest(hex.EncodeToString(in.sum.Sum(nil)))
}

func tooLarge(limit int64) error {
	return fault.TooLarge("too_large", "the content has more than %d bytes", limit).
		Fix("send less, or have the limit raised by whoever runs the server")
}
