package wire

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"drover/internal/fault"
	"drover/internal/rpm"
)

// Kinds is how many files of a tree are put together from chunks: primary, filelists, other.
const Kinds = 3

// Chunk is the metadata of a run of packages: a blob that holds a member of each kind, one
// after the other.
type Chunk struct {
	Digest   string       // sha256 of the blob
	Size     [Kinds]int64 // of its members
	Packages int
}

// Offset is where the member of a kind begins in the blob.
func (c Chunk) Offset(k rpm.Kind) (off int64) {
	for j := range k {
		off += c.Size[j]
	}
	return off
}

// Bytes is the size of the blob.
func (c Chunk) Bytes() int64 { return c.Offset(Kinds) }

// Index tells of which chunks the files of a tree are made, so that whoever has most of them
// fetches the others only. A file is its head, the members of its kind, its tail.
type Index struct {
	Head, Tail [Kinds][]byte
	Chunks     []Chunk
}

// indexVersion is the number in the first line.
const indexVersion = 1

// Bounds of an index.
const (
	MaxIndex     = 64 << 20 // bytes, unpacked
	maxChunks    = 200_000
	maxChunkSize = 256 << 20 // of one member
	maxEdge      = 64 << 10  // of a head or tail
)

// Text writes the index: the version; for each kind what stands before and after the chunks
// (hex); then a chunk each, by the sha256 of its blob, with the sizes of its members and how
// many packages it has.
func (x Index) Text() []byte {
	var b bytes.Buffer
	fmt.Fprintln(&b, rpm.ChunkIndex, indexVersion)
	for k := range rpm.KindOther + 1 {
		fmt.Fprintf(&b, "%s %x %x\n", k, x.Head[k], x.Tail[k])
	}
	for _, c := range x.Chunks {
		fmt.Fprintln(&b, "chunk", c.Digest, c.Size[0], c.Size[1], c.Size[2], c.Packages)
	}
	return b.Bytes()
}

func badIndex(format string, args ...any) error {
	return fault.Invalid("chunk_index", "bad index of chunks: "+format, args...).Fix("the whole files that repomd.xml names hold the same")
}

// ParseIndex reads an index as [Index.Text] writes it. What it says is not to be believed: the
// files that come of it must have the checksums of repomd.xml.
func ParseIndex(b []byte) (x Index, err error) {
	if len(b) > MaxIndex {
		return x, badIndex("%d bytes", len(b))
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		line, whole := strings.CutSuffix(line, "\n")
		if !whole {
			return x, badIndex("the last line is cut off")
		}
		w := strings.Split(line, " ")
		switch {
		case n == 0:
			if line != fmt.Sprintf("%s %d", rpm.ChunkIndex, indexVersion) {
				return x, badIndex("it begins with %.60q", line)
			}
		case n <= Kinds:
			k := rpm.Kind(n - 1)
			if len(w) != 3 || w[0] != k.String() || len(line) > 4*maxEdge {
				return x, badIndex("line %d is not that of %s", n+1, k)
			}
			if x.Head[k], err = hex.DecodeString(w[1]); err == nil {
				x.Tail[k], err = hex.DecodeString(w[2])
			}
			if err != nil || len(x.Head[k]) > maxEdge || len(x.Tail[k]) > maxEdge {
				return x, badIndex("line %d holds no hex", n+1)
			}
		default:
			c, ok := parseChunk(w)
			if !ok || len(x.Chunks) == maxChunks {
				return x, badIndex("line %d is no chunk", n+1)
			}
			x.Chunks = append(x.Chunks, c)
		}
		n++
	}
	if n <= Kinds {
		return x, badIndex("%d lines", n)
	}
	return x, nil
}

func parseChunk(w []string) (c Chunk, ok bool) {
	if len(w) != 6 || w[0] != "chunk" || !IsDigest(w[1]) {
		return c, false
	}
	c.Digest = w[1]
	for i := range c.Size {
		n, err := strconv.ParseInt(w[2+i], 10, 64)
		if err != nil || n < 0 || n > maxChunkSize || strconv.FormatInt(n, 10) != w[2+i] {
			return c, false
		}
		c.Size[i] = n
	}
	n, err := strconv.Atoi(w[5])
	c.Packages = n
	return c, err == nil && n >= 0 && strconv.Itoa(n) == w[5]
}

// IsDigest tells whether s is a sha256 in lower-case hex.
func IsDigest(s string) bool { return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" }
