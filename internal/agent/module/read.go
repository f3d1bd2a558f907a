package module

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"

	"drover/internal/fault"
)

// MaxFile is how much of one file of the host is read: passwords, tables of mounts and the like
// are far smaller.
const MaxFile = 16 << 20

// ReadFile is a file's text as it stands.
func ReadFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return ReadAll(f, name)
}

// ReadIfThere is a file's text as it stands; a missing file is empty.
func ReadIfThere(name string) (string, error) {
	s, err := ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return s, err
}

// ReadAll is what a reader has, within MaxFile. The name is for the message.
func ReadAll(r io.Reader, name string) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, MaxFile+1))
	if err != nil {
		return "", err
	}
	if len(b) > MaxFile {
		return "", fault.TooLarge("file_too_large", "%s is larger than %d bytes", name, MaxFile)
	}
	return string(b), nil
}

// Valid is a text that JSON can carry: bytes that are no UTF-8 are replaced.
func Valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
