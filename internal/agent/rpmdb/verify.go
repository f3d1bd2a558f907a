package rpmdb

import (
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"database/sql"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"drover/internal/rpm"
)

// What is verified of a file, by bit of File.Verify (rpm's include/rpm/rpmvf.h).
const (
	verifyDigest = 1 << iota
	verifySize
	verifyLink
	verifyUser
	verifyGroup
	verifyTime
	verifyMode
	verifyDevice
	verifyCaps
)

// Mismatch is how a file differs from what was installed.
type Mismatch struct {
	Missing bool
	// Letters is what `rpm -V` prints: "S.5....T." with S for the size, M the mode, 5 the digest,
	// D the device, L the link's target, U the user, G the group, T the time, P the capabilities;
	// "?" is what cannot be read. It is empty for a missing file.
	Letters string
	// Words is the same in Salt's words: "size", "mode", "md5sum" (whatever the digest is),
	// "device major/minor number", "readlink path", "user", "group", "mtime", "capabilities".
	Words []string
	Kind  string // "config", "doc", "ghost", "license", "readme", "artifact", or empty
}

// words are Salt's, by place in Mismatch.Letters.
var words = [...]string{"size", "mode", "md5sum", "device major/minor number", "readlink path", "user", "group", "mtime", "capabilities"}

const letters = "SM5DLUGTP"

// kindOf is the kind of a file; of several, the one that rpm shows.
func kindOf(flags uint32) string {
	for _, k := range [...]struct {
		bit  uint32
		name string
	}{{rpm.FileConfig, "config"}, {rpm.FileDoc, "doc"}, {rpm.FileGhost, "ghost"}, {rpm.FileLicense, "license"}, {1 << 8, "readme"}, {1 << 12, "artifact"}} {
		if flags&k.bit != 0 {
			return k.name
		}
	}
	return ""
}

// Verify compares the files of an installed package with what was installed, as `rpm -V` does but
// for dependencies and scripts, and tells of those that differ. Ghosts, which the package does not
// bring, are only looked at when asked for. Without such a package the error has code
// package_missing.
func Verify(ctx context.Context, root, label string, ghosts bool) (out map[string]Mismatch, err error) {
	t := newTree(root)
	defer func() { err = errors.Join(err, t.close()) }()
	err = read(ctx, root, func(tx *sql.Tx) error {
		out = map[string]Mismatch{}
		return some(ctx, tx, label, func(h rpm.Header) error {
			fs, err := filesOf(h)
			if err != nil {
				return err
			}
			for _, f := range fs {
				if f.Flags&rpm.FileGhost != 0 && !ghosts {
					continue
				}
				m, ok, err := t.verify(ctx, f)
				if err != nil {
					return err
				}
				if !ok {
					if m, err = shared(ctx, tx, t, f.Path, m); err != nil {
						return err
					}
					if m.Missing || strings.Trim(m.Letters, ".") != "" {
						m.Words = say(m.Letters)
						out[f.Path] = m
					}
				}
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// shared takes back that the time of a file differs which several packages brought: it is that of
// the last one.
func shared(ctx context.Context, tx *sql.Tx, t *tree, name string, m Mismatch) (Mismatch, error) {
	at := strings.IndexByte(letters, 'T')
	if m.Missing || m.Letters[at] != 'T' {
		return m, nil
	}
	n := 0
	if err := owners(ctx, tx, t, name, func(rpm.Header) { n++ }); err != nil {
		return m, err
	}
	if n > 1 {
		m.Letters = m.Letters[:at] + "." + m.Letters[at+1:]
	}
	return m, nil
}

func say(shown string) (out []string) {
	for i, c := range []byte(shown) {
		if c != '.' {
			out = append(out, words[i])
		}
	}
	return out
}

// tree is the files below a root, seen as if it were "/".
type tree struct {
	root   string
	dir    string // the directory that fd is of
	fd     int    // -1 when there is none
	users  map[uint32]string
	groups map[uint32]string
}

func newTree(root string) *tree { return &tree{root: clean(root), fd: -1} }

func (t *tree) close() error {
	fd := t.fd
	t.fd, t.dir = -1, ""
	if fd < 0 {
		return nil
	}
	return unix.Close(fd)
}

// enter opens a directory. Links in the path lead to places below the root.
func (t *tree) enter(dir string) error {
	if t.fd >= 0 && t.dir == dir {
		return nil
	}
	if err := t.close(); err != nil {
		return err
	}
	fd, err := openDir(t.root, dir)
	if err != nil {
		return err
	}
	t.fd, t.dir = fd, dir
	return nil
}

func openDir(root, dir string) (int, error) {
	if root == "/" {
		return unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	at, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(at)
	return unix.Openat2(at, dir, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
}

// same tells whether two paths lead to one directory.
func (t *tree) same(a, b string) bool {
	var s [2]unix.Stat_t
	for i, p := range []string{a, b} {
		fd, err := openDir(t.root, p)
		if err != nil {
			return false
		}
		if err := errors.Join(unix.Fstat(fd, &s[i]), unix.Close(fd)); err != nil {
			return false
		}
	}
	return s[0].Dev == s[1].Dev && s[0].Ino == s[1].Ino
}

// verify compares one file. It is ok when nothing differs.
func (t *tree) verify(ctx context.Context, f File) (m Mismatch, ok bool, err error) {
	if err := ctx.Err(); err != nil {
		return m, false, err
	}
	m.Kind = kindOf(f.Flags)
	want := f.Verify
	switch f.State {
	case NetShared, NotInstalled:
		return m, true, nil
	case Replaced: // all that can be told is whether there is a file
		want = 0
	case WrongColor: // the other file has the same owner and mode
		want &^= verifyDigest | verifySize | verifyTime | verifyDevice
	case Normal:
	}
	dir, base := path.Split(f.Path)
	var st unix.Stat_t
	if err := t.enter(dir); err != nil || unix.Fstatat(t.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		m.Missing = true
		return m, f.Flags&(rpm.FileMissingOK|rpm.FileGhost) != 0, nil //nolint:nilerr // that it cannot be reached is what is told
	}
	typ := st.Mode & unix.S_IFMT
	if f.IsDir() && typ == unix.S_IFLNK {
		// An administrator may move a directory elsewhere and leave a link.
		var to unix.Stat_t
		fd, err := openDir(t.root, f.Path)
		if err == nil {
			err = errors.Join(unix.Fstat(fd, &to), unix.Close(fd))
		}
		if err == nil && (st.Uid == 0 || t.user(st.Uid) == f.User) {
			st, typ = to, to.Mode&unix.S_IFMT
		}
	}
	if typ == unix.S_IFLNK {
		want &^= verifyMode
	} else {
		want &^= verifyLink
	}
	if typ != unix.S_IFREG {
		want &^= verifyDigest | verifySize | verifyTime | verifyCaps
	}
	ghost := f.Flags&rpm.FileGhost != 0
	if ghost {
		want &^= verifyDigest | verifySize | verifyTime | verifyLink
	}
	shown := []byte(".........")
	note := func(letter byte) { shown[strings.IndexByte(letters, letter)] = letter }
	unread := func(letter byte) { shown[strings.IndexByte(letters, letter)] = '?' }
	if want&verifySize != 0 && uint64(st.Size) != f.Size {
		note('S')
	}
	if want&verifyMode != 0 {
		is, was := st.Mode, uint32(f.Mode)
		if ghost {
			is, was = is&^unix.S_IFMT, was&^unix.S_IFMT
		}
		if is != was {
			note('M')
		}
	}
	if want&verifyDigest != 0 {
		switch same, err := t.digest(ctx, base, f, uint64(st.Size)); {
		case ctx.Err() != nil:
			return m, false, ctx.Err()
		case err != nil:
			unread('5')
		case !same:
			note('5')
		}
	}
	if want&verifyDevice != 0 && !sameDevice(f, st) {
		note('D')
	}
	if want&verifyLink != 0 {
		b := make([]byte, unix.PathMax)
		if n, err := unix.Readlinkat(t.fd, base, b); err != nil {
			unread('L')
		} else if string(b[:n]) != f.Linkto {
			note('L')
		}
	}
	if want&verifyUser != 0 && t.user(st.Uid) != f.User {
		note('U')
	}
	if want&verifyGroup != 0 && t.group(st.Gid) != f.Group {
		note('G')
	}
	if want&verifyTime != 0 && st.Mtim.Sec != int64(f.Mtime) {
		note('T')
	}
	if want&verifyCaps != 0 {
		if same, err := t.caps(base, f.Caps); err != nil {
			unread('P')
		} else if !same {
			note('P')
		}
	}
	m.Letters = string(shown)
	return m, strings.Trim(m.Letters, ".") == "", nil
}

func sameDevice(f File, st unix.Stat_t) bool {
	is, was := st.Mode&unix.S_IFMT, uint32(f.Mode)&unix.S_IFMT
	device := func(t uint32) bool { return t == unix.S_IFCHR || t == unix.S_IFBLK }
	if !device(is) && !device(was) {
		return true
	}
	return is == was && uint16(st.Rdev) == f.Rdev
}

// newHash makes the digest of a name as Header.FileDigest gives it.
func newHash(algo string) hash.Hash {
	switch algo {
	case "md5":
		return md5.New()
	case "sha1":
		return sha1.New()
	case "sha224":
		return sha256.New224()
	case "sha256":
		return sha256.New()
	case "sha384":
		return sha512.New384()
	case "sha512":
		return sha512.New()
	case "sha3-256":
		return sha3.New256()
	}
	return nil
}

// digest compares the content of a file.
func (t *tree) digest(ctx context.Context, base string, f File, size uint64) (same bool, err error) {
	h := newHash(f.Algo)
	if h == nil {
		return false, nil // the package tells none that could fit
	}
	// What was a regular file a moment ago may be a pipe now, which must not hold the agent.
	fd, err := unix.Openat(t.fd, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	file := os.NewFile(uintptr(fd), base)
	defer func() { err = errors.Join(err, file.Close()) }()
	if size != f.Size {
		return false, nil // nothing of another size has the same digest
	}
	b := make([]byte, 64<<10)
	for left := size; left > 0; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n, err := file.Read(b[:min(left, uint64(len(b)))])
		h.Write(b[:n])
		left -= uint64(n)
		if errors.Is(err, io.EOF) {
			return false, nil // it has become shorter
		}
		if err != nil {
			return false, err
		}
	}
	return hex.EncodeToString(h.Sum(nil)) == f.Digest, nil
}

// maxAccounts bounds the files of users and groups.
const maxAccounts = 8 << 20

func (t *tree) user(id uint32) string {
	if t.users == nil {
		t.users = t.accounts("etc/passwd")
	}
	return t.users[id]
}

func (t *tree) group(id uint32) string {
	if t.groups == nil {
		t.groups = t.accounts("etc/group")
	}
	return t.groups[id]
}

// accounts are the names by number in a file such as /etc/passwd. One that cannot be read leaves
// root alone, as rpm has it.
func (t *tree) accounts(file string) map[uint32]string {
	out := map[uint32]string{}
	if p, err := within(t.root, file); err == nil {
		if f, err := os.Open(p); err == nil {
			if b, err := io.ReadAll(io.LimitReader(f, maxAccounts)); err == nil {
				out = accounts(string(b))
			}
			_ = f.Close() // nothing was written to it
		}
	}
	out[0] = "root"
	return out
}

func accounts(text string) map[uint32]string {
	out := map[uint32]string{}
	for l := range strings.Lines(text) {
		parts := strings.SplitN(l, ":", 4)
		if len(parts) < 4 {
			continue
		}
		id, err := strconv.ParseUint(parts[2], 10, 32)
		if err != nil {
			continue
		}
		if _, ok := out[uint32(id)]; !ok {
			out[uint32(id)] = parts[0]
		}
	}
	return out
}
