package rpm

import "math"

// File is one file of a package.
type File struct {
	Path   string
	Mode   uint16 // type and permissions as in stat(2)
	Flags  uint32 // File…
	Size   uint64
	Mtime  uint32 // seconds since 1970
	Digest string // hex, empty for what is no regular file; see Header.FileDigest
	Linkto string
	User   string
	Group  string
	Inode  uint32 // tells hard links of one package from each other, no more
	Rdev   uint16
	Color  uint32 // 1 for a 32-bit binary, 2 for a 64-bit one, 0 for what is none
}

// Types of files in File.Mode.
const (
	modeType    = 0o170000
	modeRegular = 0o100000
	modeDir     = 0o040000
	modeLink    = 0o120000
)

// IsDir tells whether the file is a directory.
func (f File) IsDir() bool { return f.Mode&modeType == modeDir }

// IsRegular tells whether the file is a regular one.
func (f File) IsRegular() bool { return f.Mode&modeType == modeRegular }

// FileWalk goes over the files of a package without copying: Next, then Dir, Base, Mode and
// Flags.
type FileWalk struct {
	bases, dirs  walk
	idx          Ints
	modes, flags Ints
	store        []byte   // of the first directory's name on
	table        []uint32 // where each directory's name starts; only when the files don't come sorted by it
	dir          []byte
	nth          int // directory of dir
	i            int
	room         int // bytes that the paths to come may have
	old          bool
}

// maxPaths is how much longer than the header all paths of its files together may be: a
// long directory that many files share must not grow past reason.
const maxPaths = 4

// FileWalk starts a walk over the files, or fails with rpm_header when the lists of the
// header do not fit each other.
func (h Header) FileWalk() (FileWalk, error) {
	w := FileWalk{modes: h.Ints(FileModes), flags: h.Ints(FileFlags), i: -1, nth: -1, room: maxPaths * len(h.raw)}
	if h.Has(Basenames) {
		w.bases, w.dirs, w.idx = h.walk(Basenames), h.walk(DirNames), h.Ints(DirIndexes)
		if uint32(w.idx.Len()) != w.bases.left {
			return w, bad("%d file names with %d directories", w.bases.left, w.idx.Len())
		}
		if w.dirs.left > w.bases.left {
			return w, bad("%d directories for %d files", w.dirs.left, w.bases.left)
		}
		w.store = w.dirs.rest
	} else {
		w.bases, w.old = h.walk(OldFilenames), true
	}
	n := int(w.bases.left)
	for _, t := range [...]Tag{FileModes, FileFlags, FileSizes, LongFileSize, FileMtimes, FileDigests, FileLinktos, FileUser, FileGroup, FileInodes, FileRdevs, FileColors} {
		if e, ok := h.find(t); ok && int(e.count) != n {
			return w, bad("%d files, %d values of tag %d", n, e.count, t)
		}
	}
	if n > 0 && w.modes.Len() != n {
		return w, bad("%d files without modes", n)
	}
	dirs := w.dirs.left
	for i := range w.idx.Len() {
		if w.idx.At(i) >= uint64(dirs) {
			return w, bad("file %d lies in directory %d of %d", i, w.idx.At(i), dirs)
		}
	}
	return w, nil
}

// Len is the number of files not yet walked over.
func (w *FileWalk) Len() int { return int(w.bases.left) }

// Next goes to the next file, the first one at first, and tells whether there is one. The
// walk ends early in a header that names few but long directories again and again, so that
// all paths would be many times longer than it: Files and CheckPaths refuse that.
func (w *FileWalk) Next() bool {
	w.i++
	if !w.bases.Next() {
		return false
	}
	if !w.old {
		w.enter(int(w.idx.At(w.i)))
	}
	w.room -= len(w.dir) + len(w.bases.cur)
	return w.room >= 0
}

// enter makes directory n the current one. Files come sorted by directory as a rule; a
// walk that goes back gets a table, so that no order of files costs more than one pass.
func (w *FileWalk) enter(n int) {
	if n < w.nth && w.table == nil {
		w.dirs = walk{rest: w.store, left: w.dirs.left + uint32(w.nth) + 1}
		w.table = make([]uint32, 0, w.dirs.left)
		for d := w.dirs; d.left > 0; d.Next() {
			w.table = append(w.table, uint32(len(w.store)-len(d.rest)))
		}
	}
	if w.table != nil {
		w.dir, w.nth = cstring(w.store[w.table[n]:]), n
		return
	}
	for w.nth < n {
		w.dirs.Next()
		w.nth++
		w.dir = w.dirs.cur
	}
}

// Dir is the current file's directory with a slash at its end, as bytes of the header;
// empty in headers of rpm 3, whose Base is the whole path, and in source packages.
func (w *FileWalk) Dir() []byte { return w.dir }

// Base is the current file's name as bytes of the header.
func (w *FileWalk) Base() []byte { return w.bases.cur }

// Mode is the current file's type and permissions.
func (w *FileWalk) Mode() uint16 { return uint16(w.modes.At(w.i)) }

// Flags is the current file's flags.
func (w *FileWalk) Flags() uint32 { return uint32(w.flags.At(w.i)) }

// Files is the files of a package in the header's order, or an error with code rpm_header
// when the lists of the header do not fit each other.
func (h Header) Files() ([]File, error) {
	w, err := h.FileWalk()
	if err != nil {
		return nil, err
	}
	sizes, mtimes, inodes, rdevs, colors := h.Ints(FileSizes), h.Ints(FileMtimes), h.Ints(FileInodes), h.Ints(FileRdevs), h.Ints(FileColors)
	if h.Has(LongFileSize) {
		sizes = h.Ints(LongFileSize)
	}
	digests, links, users, groups := h.walk(FileDigests), h.walk(FileLinktos), h.walk(FileUser), h.walk(FileGroup)
	next := func(w *walk, last string) string {
		w.Next()
		if string(w.cur) == last {
			return last
		}
		return string(w.cur)
	}
	var out []File
	if n := w.Len(); n > 0 {
		out = make([]File, 0, n)
	}
	var last File
	for w.Next() {
		if s := sizes.At(w.i); s > math.MaxInt64 {
			return nil, bad("a file of %d bytes", s)
		}
		last = File{Path: string(w.dir) + string(w.Base()), Mode: w.Mode(), Flags: w.Flags(), Size: sizes.At(w.i), Mtime: uint32(mtimes.At(w.i)), Digest: next(&digests, ""),
			Linkto: next(&links, ""), User: next(&users, last.User), Group: next(&groups, last.Group), Inode: uint32(inodes.At(w.i)), Rdev: uint16(rdevs.At(w.i)), Color: uint32(colors.At(w.i))}
		out = append(out, last)
	}
	if w.room < 0 {
		return nil, bad("file names of over %d bytes", maxPaths*len(h.raw))
	}
	return out, nil
}

// FileDigest is the name of the algorithm of the digests in File.Digest: "sha256" in every
// package of this century, "md5" where the header does not tell, "" when it is unknown.
func (h Header) FileDigest() string {
	switch h.Int(FileDigAlgo) {
	case 0, digestMD5:
		return "md5"
	case digestSHA1:
		return "sha1"
	case digestSHA224:
		return "sha224"
	case digestSHA256:
		return "sha256"
	case digestSHA384:
		return "sha384"
	case digestSHA512:
		return "sha512"
	case digestSHA3:
		return "sha3-256"
	}
	return ""
}
