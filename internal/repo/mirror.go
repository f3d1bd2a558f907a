package repo

import (
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // old repositories name their files by it; it is checked, not trusted
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"drover/internal/auth"
	"drover/internal/blob"
	"drover/internal/db"
	"drover/internal/durable"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/repo/set"
	"drover/internal/rpm"
	"drover/internal/web"

	"golang.org/x/sync/errgroup"
)

// Mirror is an upstream repository of one arch that is copied into snapshots; its channel
// has its name.
type Mirror struct {
	Name    string    `json:"name"`
	URL     string    `json:"url"`
	Arch    string    `json:"arch"`
	Since   int64     `json:"since"`
	Synced  time.Time `json:"synced,omitzero"`
	Outcome string    `json:"outcome,omitempty"` // "ok", or the last error
}

// Bounds of one mirror.
const (
	maxMeta     = 512 << 20 // bytes of one metadata file
	maxOpenMeta = 4 << 30   // bytes that it unpacks to
	maxMirrored = 200_000   // packages
	fetchers    = 6         // requests at once
	tries       = 4         // of one file, and of the whole when upstream changes meanwhile
)

var reArch = regexp.MustCompile(`^[a-z0-9_]{2,20}$`)

// SetMirror adds a mirror or changes its address.
func (s *Store) SetMirror(ctx context.Context, m Mirror) error {
	if err := auth.Need(ctx, "repo.mirror", m.Name); err != nil {
		return err
	}
	u, err := url.Parse(m.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || len(m.URL) > 1000 {
		return fault.Invalid("mirror_url", "%.200q is no HTTP address of a repository", m.URL).Fix("give the directory that holds repodata/, by http or https")
	}
	if u.User != nil {
		return fault.Invalid("mirror_url", "the address holds a password, and everybody may read it here").Fix("take an address that needs none")
	}
	if !reName.MatchString(m.Name) || !reArch.MatchString(m.Arch) {
		return fault.Invalid("mirror", "%.100q with arch %.40q is no mirror", m.Name, m.Arch)
	}
	if !strings.HasSuffix(m.URL, "/") {
		m.URL += "/"
	}
	return s.DB.Write(ctx, func(tx *db.Tx) error {
		if _, err := s.Release.At(tx, m.Name, event.Now); err == nil {
			return fault.Conflict("channel_taken", "there is a tag %s: its channel has this name", m.Name).Fix("give the mirror another name")
		} else if fault.Code(err) != "tag_unknown" {
			return err
		}
		had, err := getMirror(tx, m.Name)
		if err != nil && fault.Code(err) != "mirror_unknown" {
			return err
		}
		if had.URL == m.URL && had.Arch == m.Arch {
			return nil
		}
		ev, err := event.Append(tx, "mirror.set", "mirror/"+m.Name, map[string]string{"url": m.URL, "arch": m.Arch})
		if err != nil {
			return err
		}
		_, err = tx.Exec("INSERT INTO repo_mirror (name, url, arch, since, synced, outcome) VALUES ($1, $2, $3, $4, 0, '') ON CONFLICT (name) DO UPDATE SET url = excluded.url, arch = excluded.arch, since = excluded.since",
			m.Name, m.URL, m.Arch, ev)
		return err
	})
}

const mirrorColumns = "name, url, arch, since, synced, outcome"

func scanMirror(scan func(...any) error) (m Mirror, err error) {
	var synced int64
	err = scan(&m.Name, &m.URL, &m.Arch, &m.Since, &synced, &m.Outcome)
	m.Synced = db.Time(synced)
	return m, err
}

func getMirror(tx *db.Tx, name string) (Mirror, error) {
	m, err := scanMirror(tx.QueryRow("SELECT "+mirrorColumns+" FROM repo_mirror WHERE name = $1", name).Scan)
	if db.NoRow(err) {
		return m, fault.NotFound("mirror_unknown", "there is no mirror %.100q", name).Fix("see `drover mirror list`")
	}
	return m, err
}

// Mirrors lists the mirrors.
func (s *Store) Mirrors(ctx context.Context) ([]Mirror, error) {
	out := []Mirror{}
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			m, err := scanMirror(scan)
			out = append(out, m)
			return err
		}, "SELECT "+mirrorColumns+" FROM repo_mirror ORDER BY name")
	})
	return out, err
}

// Progress is how far a sync is.
type Progress struct {
	Packages int64 `json:"packages"`
	Done     int64 `json:"done"`
	Bytes    int64 `json:"bytes"` // fetched
}

// Sync copies a mirror's upstream into a snapshot and moves the channel to it. Everything is
// checked before anything counts; what is in the store already is not fetched again, so a
// sync that was cut off goes on.
func (s *Store) Sync(ctx context.Context, name string, say func(Progress)) (id string, err error) {
	if err := auth.Need(ctx, "repo.mirror", name); err != nil {
		return "", err
	}
	s.mu.Lock()
	busy := s.syncing[name]
	s.syncing[name] = true
	s.mu.Unlock()
	if busy {
		return "", fault.Conflict("mirror_busy", "the mirror %s is being synced", name).Fix("wait for it to end")
	}
	defer func() {
		s.mu.Lock()
		delete(s.syncing, name)
		s.mu.Unlock()
	}()
	var m Mirror
	if err := s.DB.Read(ctx, func(tx *db.Tx) error { m, err = getMirror(tx, name); return err }); err != nil {
		return "", err
	}
	for n := range tries {
		if err := s.pause(ctx, n); err != nil {
			return "", err
		}
		id, err = s.syncOnce(ctx, m, say)
		if fault.Code(err) != "mirror_moved" {
			break // only an upstream that changed meanwhile is worth another look
		}
	}
	outcome := "ok"
	if err != nil {
		outcome = strings.ToValidUTF8(strings.ReplaceAll(fault.As(err).Error(), "\x00", ""), "?")
		outcome = strings.ToValidUTF8(outcome[:min(len(outcome), 2000)], "")
	}
	werr := s.DB.Write(context.WithoutCancel(ctx), func(tx *db.Tx) error {
		if err != nil {
			if _, err := event.Append(tx, "mirror.failed", "mirror/"+name, map[string]string{"error": outcome}); err != nil {
				return err
			}
		}
		_, err := tx.Exec("UPDATE repo_mirror SET synced = $1, outcome = $2 WHERE name = $3", tx.Now(), outcome, name)
		return err
	})
	return id, errors.Join(err, werr)
}

func (s *Store) syncOnce(ctx context.Context, m Mirror, say func(Progress)) (string, error) {
	t := &tree{name: m.Arch, fresh: true}
	repomd, err := s.small(ctx, m.URL+repomdFile, 1<<20)
	if err != nil {
		return "", err
	}
	if err := s.addFile(t, repomdFile, repomd); err != nil {
		return "", err
	}
	asc, err := s.small(ctx, m.URL+repomdFile+".asc", 64<<10)
	if err == nil {
		err = s.addFile(t, repomdFile+".asc", asc)
	}
	if c := fault.Code(err); err != nil && c != "mirror_missing" && c != "mirror_denied" {
		return "", err // an upstream without signatures is one thing, an unreachable one another
	}
	if id, err := s.unchanged(ctx, m, t); err != nil || id != "" {
		return id, err
	}
	datas, err := rpm.ReadRepomd(repomd)
	if err != nil {
		return "", err
	}
	var primary blob.Digest
	for _, d := range datas {
		// What EL7's yum read is large and of no use; the checksums of repomd.xml hold without.
		if strings.HasSuffix(d.Type, "_db") {
			continue
		}
		dig, size, err := s.file(ctx, m.URL, d)
		if err != nil {
			return "", moved(err)
		}
		if d.Type == "primary" {
			primary = dig
		}
		t.files = append(t.files, file{Path: d.Href, Sum: dig.String(), Size: size})
	}
	wanted, err := s.wanted(primary)
	if err != nil {
		return "", err
	}
	pkgs, err := s.fetchAll(ctx, m, wanted, say)
	if err != nil {
		return "", moved(err)
	}
	ms := make([]member, len(wanted))
	for i, w := range wanted {
		ms[i] = member{Package: pkgs[i], Href: w.Href}
	}
	if t.chunks, err = set.Edit(nil, set.BySource(ms), nil); err != nil {
		return "", err
	}
	again, err := s.small(ctx, m.URL+repomdFile, 1<<20)
	if err != nil {
		return "", err
	}
	if !bytes.Equal(again, repomd) {
		return "", fault.Unavailable("mirror_moved", "%s changed while it was copied", m.URL)
	}
	t.seal()
	trees := []*tree{t}
	sn := Snapshot{ID: snapshotID("mirror", m.Name, trees), Kind: "mirror", Source: m.Name, Packages: int64(len(pkgs))}
	return sn.ID, s.commit(ctx, sn, trees)
}

// unchanged is the mirror's present snapshot when it was made of the same repomd.xml: its
// checksums cover everything else.
func (s *Store) unchanged(ctx context.Context, m Mirror, t *tree) (id string, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		c, err := channelAt(tx, m.Name, event.Now)
		if err != nil {
			if fault.Code(err) == "channel_unknown" {
				return nil
			}
			return err
		}
		if c.Snapshot == snapshotID("mirror", m.Name, []*tree{t}) {
			id = c.Snapshot
		}
		return nil
	})
	return id, err
}

// moved takes a missing or other file for an upstream that changed: its repomd.xml is read
// again.
func moved(err error) error {
	if c := fault.Code(err); c == "mirror_missing" || c == "mirror_sum" {
		return fault.Unavailable("mirror_moved", "upstream is not whole").Wrap(err).Fix("it may be in the middle of an update; sync again later")
	}
	return err
}

func (s *Store) wanted(primary blob.Digest) ([]rpm.PrimaryPackage, error) {
	b, err := s.Blobs.Get(primary)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	var out []rpm.PrimaryPackage
	seen := map[string]bool{}
	err = rpm.ReadPrimary(b, func(p rpm.PrimaryPackage) error {
		if len(out) >= maxMirrored {
			return fault.TooLarge("mirror_size", "the repository has over %d packages", maxMirrored)
		}
		if seen[p.Href] {
			return fault.Invalid("mirror_twice", "the repository names %.200q twice", p.Href)
		}
		seen[p.Href] = true
		out = append(out, p)
		return nil
	})
	return out, err
}

// fetchAll fetches the packages that are not here yet, several at once, and writes their rows
// as they come, so that nothing is fetched twice.
func (s *Store) fetchAll(ctx context.Context, m Mirror, wanted []rpm.PrimaryPackage, say func(Progress)) ([]Package, error) {
	out := make([]Package, len(wanted))
	var done, fetched atomic.Int64
	report := func() {
		if say != nil {
			say(Progress{int64(len(wanted)), done.Load(), fetched.Load()})
		}
	}
	var todo []int
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		for i, w := range wanted {
			if w.Algo == "sha256" {
				p, err := scanPackage(tx.QueryRow("SELECT "+packageColumns+" FROM repo_package WHERE pkgid = $1", w.Sum).Scan)
				if err == nil {
					out[i] = p
					done.Add(1)
					continue
				}
				if !db.NoRow(err) {
					return err
				}
			}
			todo = append(todo, i)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	report()
	// Rows go in by batches: one transaction a package would wait for the disk each time.
	rows := make(chan described, 64)
	kept := make(chan error, 1)
	g, gctx := errgroup.WithContext(ctx)
	go func() { kept <- s.keepAll(ctx, rows) }()
	g.SetLimit(fetchers)
	for _, i := range todo {
		g.Go(func() error {
			d, err := s.fetchPackage(gctx, m.URL+wanted[i].Href, wanted[i])
			if err != nil {
				return err
			}
			p := d.Package
			out[i] = p
			fetched.Add(p.Size)
			done.Add(1)
			report()
			rows <- d
			return nil
		})
	}
	err = g.Wait()
	close(rows)
	return out, errors.Join(err, <-kept)
}

// described is a package with what metadata says of it.
type described struct {
	Package
	entry rpm.Template
}

func (s *Store) keepAll(ctx context.Context, rows <-chan described) error {
	var failed error
	for p := range rows {
		batch := []described{p}
	more:
		for len(batch) < 200 {
			select {
			case q, ok := <-rows:
				if !ok {
					break more
				}
				batch = append(batch, q)
			default:
				break more
			}
		}
		if failed != nil {
			continue // the senders must not wait for a reader that is gone
		}
		failed = s.DB.Write(context.WithoutCancel(ctx), func(tx *db.Tx) error {
			for _, p := range batch {
				if err := s.keepPackage(tx, p.Package, p.entry); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return failed
}

// fetchPackage fetches one package, checks it against upstream's word and its own, and stores
// head and core.
func (s *Store) fetchPackage(ctx context.Context, url string, w rpm.PrimaryPackage) (p described, err error) {
	tmp, err := s.temp()
	if err != nil {
		return p, err
	}
	defer tmp.Close()
	if err := s.fetch(ctx, url, w.Algo, w.Sum, w.Size, 16<<30, tmp); err != nil {
		return p, err
	}
	size, err := tmp.Seek(0, io.SeekEnd)
	if err != nil {
		return p, err
	}
	q, err := rpm.Read(tmp, size)
	if err != nil {
		return p, err
	}
	if err := q.VerifyDigests(tmp); err != nil {
		return p, err
	}
	n := q.NEVRA()
	if n.Name != w.Name || n.Epoch != w.Epoch || n.Version != w.Version || n.Release != w.Release || n.Arch != w.Arch {
		return p, fault.Invalid("mirror_lie", "%s holds %s, but the metadata says %s", url, n, w.NEVRA)
	}
	pkgid := w.Sum
	if w.Algo != "sha256" {
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(tmp, 0, size)); err != nil {
			return p, err
		}
		pkgid = hex.EncodeToString(h.Sum(nil))
	}
	p.Package, p.entry = newPackage(q, pkgid, size)
	if p.Head, err = s.Blobs.PutBytes(q.Head()); err != nil {
		return p, err
	}
	p.Core, _, err = s.Blobs.Put(ctx, io.NewSectionReader(tmp, q.HeaderStart, size-q.HeaderStart), blob.PutOptions{})
	return p, err
}

// small fetches a file of unknown checksum.
func (s *Store) small(ctx context.Context, url string, most int64) ([]byte, error) {
	var b bytes.Buffer
	err := s.fetch(ctx, url, "", "", 0, most, &b)
	return b.Bytes(), err
}

// temp makes a file without a name.
func (s *Store) temp() (*os.File, error) {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, err
	}
	tmp, err := os.CreateTemp(s.Dir, "mirror-")
	if err != nil {
		return nil, durable.Full(s.Dir, err)
	}
	return tmp, os.Remove(tmp.Name())
}

// file fetches a metadata file into the store, unless it is there by its sha256. What it
// unpacks to is checked too.
func (s *Store) file(ctx context.Context, base string, d rpm.Data) (blob.Digest, int64, error) {
	if d.Algo == "sha256" {
		if in, err := s.Blobs.Stat(blob.Digest(strings.ToLower(d.Sum))); err == nil {
			return in.Digest, in.Size, nil
		}
	}
	tmp, err := s.temp()
	if err != nil {
		return "", 0, err
	}
	defer tmp.Close()
	if err := s.fetch(ctx, base+d.Href, d.Algo, d.Sum, d.Size, maxMeta, tmp); err != nil {
		return "", 0, err
	}
	if err := checkOpen(io.NewSectionReader(tmp, 0, maxMeta), base+d.Href, d); err != nil {
		return "", 0, err
	}
	return s.Blobs.Put(ctx, io.NewSectionReader(tmp, 0, maxMeta), blob.PutOptions{})
}

// checkOpen compares what a metadata file unpacks to with what repomd.xml says of that.
func checkOpen(r io.Reader, url string, d rpm.Data) error {
	if d.OpenSum == "" || strings.HasSuffix(d.Href, ".zck") || strings.HasSuffix(d.Href, ".bz2") {
		return nil // not told, or in a form that is copied and not read here
	}
	in, done, err := rpm.Open(r)
	if err != nil {
		return err
	}
	defer done()
	h, err := newHash(d.OpenAlgo)
	if err != nil {
		return err
	}
	n, err := io.Copy(h, io.LimitReader(in, maxOpenMeta+1))
	switch {
	case err != nil:
		return fault.Invalid("mirror_sum", "%s cannot be unpacked", url).Wrap(err)
	case n > maxOpenMeta:
		return fault.TooLarge("mirror_size", "%s unpacks to over %d bytes", url, int64(maxOpenMeta))
	case d.OpenSize > 0 && n != d.OpenSize || !strings.EqualFold(hex.EncodeToString(h.Sum(nil)), d.OpenSum):
		return fault.Invalid("mirror_sum", "%s unpacks to something else than the metadata says", url)
	}
	return nil
}

// pause waits before try n; the first one waits for nothing.
func (s *Store) pause(ctx context.Context, n int) error {
	if n == 0 {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Duration(n*n) * s.Retry):
		return nil
	}
}

// fetch gets a file, several times if need be, and checks size and checksum.
func (s *Store) fetch(ctx context.Context, url, algo, sum string, size, most int64, w io.Writer) error {
	var err error
	for n := range tries {
		if err := s.pause(ctx, n); err != nil {
			return err
		}
		if n > 0 {
			switch t := w.(type) {
			case *bytes.Buffer:
				t.Reset()
			case *os.File:
				if _, err := t.Seek(0, io.SeekStart); err != nil {
					return err
				}
				if err := t.Truncate(0); err != nil {
					return err
				}
			}
		}
		if err = s.fetchOnce(ctx, url, algo, sum, size, most, w); err == nil {
			return nil
		}
		if c := fault.Code(err); ctx.Err() != nil || c == "mirror_missing" || c == "mirror_denied" || c == "mirror_sum" || c == "mirror_size" || c == "mirror_redirect" || c == "disk_full" {
			return err
		}
	}
	return err
}

func newHash(algo string) (hash.Hash, error) {
	switch algo {
	case "sha256", "":
		return sha256.New(), nil
	case "sha224":
		return sha256.New224(), nil
	case "sha512":
		return sha512.New(), nil
	case "sha384":
		return sha512.New384(), nil
	case "sha", "sha1":
		return sha1.New(), nil //nolint:gosec // as the repository has it
	}
	return nil, fault.Invalid("mirror_algo", "the repository uses the checksum %.20q", algo)
}

// stall is how long a connection may bring nothing.
const stall = 30 * time.Second

func (s *Store) fetchOnce(ctx context.Context, url, algo, sum string, size, most int64, w io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	idle := time.AfterFunc(stall, cancel)
	defer idle.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "drover-mirror")
	resp, err := s.HTTP.Do(req)
	if err != nil {
		return fault.Unavailable("mirror_away", "%s does not answer", url).Wrap(err).Fix("check the address and the network")
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone {
		return fault.NotFound("mirror_missing", "%s is not there", url)
	}
	if resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden {
		return fault.Denied("mirror_denied", "%s answers %s", url, resp.Status)
	}
	if resp.StatusCode != http.StatusOK {
		return fault.Unavailable("mirror_away", "%s answers %s", url, resp.Status)
	}
	if size > most {
		return fault.TooLarge("mirror_size", "%s is said to have %d bytes, over %d", url, size, most)
	}
	bound := most
	if size > 0 {
		bound = size
	}
	h, err := newHash(algo)
	if err != nil {
		return err
	}
	out := &keeping{w: w}
	n, err := io.Copy(io.MultiWriter(out, h), io.LimitReader(touching{resp.Body, idle}, bound+1))
	switch {
	case out.err != nil:
		return durable.Full(s.Dir, out.err)
	case err != nil:
		return fault.Unavailable("mirror_cut", "%s was cut at byte %d", url, n).Wrap(err)
	case n > bound && size > 0 || size > 0 && n != size:
		return fault.Invalid("mirror_sum", "%s has not the %d bytes that the metadata says", url, size)
	case n > bound:
		return fault.TooLarge("mirror_size", "%s has over %d bytes", url, bound)
	case sum != "" && !strings.EqualFold(hex.EncodeToString(h.Sum(nil)), sum):
		return fault.Invalid("mirror_sum", "%s has not the checksum that the metadata says", url)
	}
	return nil
}

// keeping keeps the error of a writer, to tell it from the reader's.
type keeping struct {
	w   io.Writer
	err error
}

// Write implements io.Writer.
func (k *keeping) Write(p []byte) (n int, err error) {
	n, k.err = k.w.Write(p)
	return n, k.err
}

// touching puts the idle timer back at every read.
type touching struct {
	r    io.Reader
	idle *time.Timer
}

// Read implements io.Reader.
func (t touching) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.idle.Reset(stall)
	return n, err
}

// Client is the HTTP client of mirrors: it follows redirects by HTTP only, and not for ever.
func Client() *http.Client {
	tr := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // the standard library's own
	tr.MaxIdleConnsPerHost = fetchers
	tr.ResponseHeaderTimeout = stall
	return &http.Client{Transport: tr, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) > 5 || r.URL.Scheme != "http" && r.URL.Scheme != "https" {
			return fault.Denied("mirror_redirect", "upstream sends us to %.200q", r.URL)
		}
		return nil
	}}
}

// SyncLine is a line of a sync's answer: progress, and at the end the snapshot or the fault.
type SyncLine struct {
	Progress
	Snapshot string       `json:"snapshot,omitempty"`
	Problem  *web.Problem `json:"problem,omitempty"`
}
