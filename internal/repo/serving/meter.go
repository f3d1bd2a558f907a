package serving

import (
	"io"
	"net/http"
	"os"
	"strconv"

	"drover/internal/blob"
	"drover/internal/fault"
	"drover/internal/web"
)

// Kinds of what is served, as the numbers at /metrics tell them apart.
const (
	KindRepomd   = "repomd"
	KindMetadata = "metadata"
	KindPackage  = "package"
	KindChunk    = "chunk"
	KindList     = "list" // metalink, mirrorlist, .repo file, package with it
)

// Meter is an answer that is counted: its handler tells what it is about.
type Meter struct {
	http.ResponseWriter
	Channel string // one that exists, or ""
	Kind    string
	status  int
	bytes   int64
}

// WriteHeader implements http.ResponseWriter.
func (m *Meter) WriteHeader(status int) {
	if m.status == 0 && status >= 200 {
		m.status = status
	}
	m.ResponseWriter.WriteHeader(status)
}

// Write implements io.Writer.
func (m *Meter) Write(b []byte) (int, error) {
	n, err := m.ResponseWriter.Write(b)
	m.bytes += int64(n)
	return n, err
}

// ReadFrom implements io.ReaderFrom. Of a package the head is written and the core, which is a
// file, left to the kernel.
func (m *Meter) ReadFrom(src io.Reader) (n int64, err error) {
	if l, ok := src.(*io.LimitedReader); ok {
		if p, ok := l.R.(*PackageFile); ok {
			if rest := min(p.Head-p.off, l.N); rest > 0 {
				n, err = io.Copy(writer{m}, io.NewSectionReader(p.At, p.off, rest))
				p.off, l.N = p.off+n, l.N-n
			}
			if err != nil || l.N <= 0 {
				return n, err
			}
			if _, err := p.Core.Seek(p.off-p.Head, io.SeekStart); err != nil {
				return n, err
			}
			src = &io.LimitedReader{R: p.Core, N: l.N}
			defer func(head int64) { p.off, l.N = p.off+n-head, l.N-(n-head) }(n)
		}
	}
	k, err := io.Copy(m.ResponseWriter, src)
	m.bytes += k
	n += k
	return n, err
}

// writer hides the other methods of one.
type writer struct{ io.Writer }

// Unwrap is for http.ResponseController.
func (m *Meter) Unwrap() http.ResponseWriter { return m.ResponseWriter }

// PackageFile reads a package: its head, then its core.
type PackageFile struct {
	At   io.ReaderAt // the whole
	Core *blob.Blob
	Head int64 // size of what stands before the core
	off  int64
}

// Read implements io.Reader.
func (p *PackageFile) Read(b []byte) (int, error) {
	n, err := p.At.ReadAt(b, p.off)
	p.off += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

// Seek implements io.Seeker.
func (p *PackageFile) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += p.off
	case io.SeekEnd:
		off += p.Head + p.Core.Size()
	}
	if off < 0 {
		return 0, os.ErrInvalid
	}
	p.off = off
	return off, nil
}

// Counters are the numbers of what is served.
type Counters struct{ requests, bytes *web.Counter }

// NewCounters adds the numbers to /metrics.
func NewCounters(srv *web.Server) Counters {
	return Counters{
		srv.Counter("drover_repo_requests_total", "Requests for repositories, by channel, kind and status.", "channel", "kind", "status"),
		srv.Counter("drover_repo_bytes_total", "Bytes of repositories that were sent, by channel and kind.", "channel", "kind"),
	}
}

// Metered is a handler whose answers are counted.
func (c Counters) Metered(kind string, h func(*Meter, *http.Request) error) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		m := &Meter{ResponseWriter: w, Kind: kind}
		err := h(m, r)
		if err != nil {
			m.status = fault.As(err).Status()
		}
		c.requests.Add(1, m.Channel, m.Kind, strconv.Itoa(max(m.status, http.StatusOK)))
		c.bytes.Add(float64(m.bytes), m.Channel, m.Kind)
		return err
	}
}
