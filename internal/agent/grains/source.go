package grains

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxFile bounds what is read of one file.
const maxFile = 1 << 20

// host is a host's files.
type host struct{ root string }

// open opens a file below the root; links in its path lead to places below the root. Whatever is no
// regular file is refused, since a pipe would hold the reader.
func (h *host) open(name string) (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY
	fd, err := h.descriptor(name, flags)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	i, err := f.Stat()
	if err == nil && !i.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", name)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (h *host) descriptor(name string, flags int) (int, error) {
	if h.root == "/" {
		return unix.Open("/"+name, flags, 0)
	}
	dir, err := unix.Open(h.root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	return unix.Openat2(dir, name, &unix.OpenHow{Flags: uint64(flags), Resolve: unix.RESOLVE_IN_ROOT})
}

// bytes is the content of a file up to maxFile, nothing when it cannot be read. Most files are there
// on some hosts only, so that a missing one is no error.
func (h *host) bytes(name string) []byte {
	f, err := h.open(name)
	if err != nil {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil
	}
	return b
}

func (h *host) text(name string) string { return strings.ToValidUTF8(string(h.bytes(name)), "\uFFFD") }

// line is the content of a file that has one line.
func (h *host) line(name string) string {
	return strings.TrimSpace(strings.Trim(h.text(name), "\x00"))
}

// exists tells whether there is anything of a name.
func (h *host) exists(name string) bool {
	fd, err := h.descriptor(name, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return false
	}
	return unix.Close(fd) == nil
}

// link is where a symbolic link leads, in its own words.
func (h *host) link(name string) string {
	fd, err := h.descriptor(name, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", b)
	if err != nil {
		return ""
	}
	return string(b[:n])
}

// maxNames bounds how many names of a directory are looked at.
const maxNames = 10_000

// names lists a directory, sorted.
func (h *host) names(dir string) []string {
	fd, err := h.descriptor(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), dir)
	names, err := f.Readdirnames(maxNames)
	if err = errors.Join(err, f.Close()); err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	slices.Sort(names)
	return names
}

// settings reads lines of KEY=value as shells do: quotes around a value, comments.
func settings(text string) map[string]string {
	out := map[string]string{}
	for l := range strings.Lines(text) {
		k, v, ok := strings.Cut(strings.TrimSpace(l), "=")
		if !ok || strings.HasPrefix(k, "#") {
			continue
		}
		out[strings.TrimSpace(k)] = unquote(strings.TrimSpace(v))
	}
	return out
}

func unquote(s string) string {
	if len(s) < 2 || s[0] != s[len(s)-1] || s[0] != '"' && s[0] != '\'' {
		return s
	}
	quote, s := s[0], s[1:len(s)-1]
	if quote == '\'' {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) && strings.IndexByte("\"\\$`", s[i+1]) >= 0 {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// number reads the digits at the start of a text.
func number(s string) (int64, bool) {
	end := 0
	for end < len(s) && s[end] >= '0' && s[end] <= '9' {
		end++
	}
	n, err := strconv.ParseInt(s[:end], 10, 64)
	return n, err == nil
}

// texts makes a list of facts of strings.
func texts(l []string) []any {
	out := make([]any, len(l))
	for i, s := range l {
		out[i] = s
	}
	return out
}

// program tells whether a program is in one of the usual directories.
func (h *host) program(name string) bool {
	return h.exists(filepath.Join("usr/bin", name)) || h.exists(filepath.Join("usr/sbin", name))
}
