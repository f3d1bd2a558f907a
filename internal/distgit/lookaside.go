package distgit

import (
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"drover/internal/auth"
	"drover/internal/blob"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
)

// maxSource bounds one source file.
const maxSource = 16 << 30

// lookaside is the name of a repository as DistGit's clients say it: without a namespace it
// is of rpms.
func lookaside(name string) string {
	if !strings.Contains(name, "/") {
		return "rpms/" + name
	}
	return name
}

// findSource reads where a source is; fault source_unknown.
func (s *Store) findSource(ctx context.Context, repo, file, sum string) (x Source, mtime time.Time, err error) {
	var at int64
	x = Source{File: file, SHA512: sum}
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow("SELECT digest, size, mtime FROM distgit_source WHERE repo = $1 AND file = $2 AND sha512 = $3", repo, file, sum).Scan(&x.Digest, &x.Size, &at)
	})
	if db.NoRow(err) {
		err = fault.NotFound("source_unknown", "the lookaside cache of %s has no %.200q with sha512 %.16s…", repo, file, sum)
	}
	return x, db.Time(at), err
}

// addSource writes down that a repository has a source.
func (s *Store) addSource(ctx context.Context, repo string, x Source, mtime time.Time) error {
	return s.DB.Write(ctx, func(tx *db.Tx) error {
		var n int
		err := tx.QueryRow("SELECT COUNT(*) FROM distgit_source WHERE repo = $1 AND file = $2 AND sha512 = $3", repo, x.File, x.SHA512).Scan(&n)
		if err != nil || n > 0 {
			return err
		}
		ev, err := event.Append(tx, "lookaside.new", "repo/"+repo, map[string]any{"file": x.File, "sha512": x.SHA512, "size": x.Size})
		if err != nil {
			return err
		}
		_, err = tx.Exec("INSERT INTO distgit_source (repo, file, sha512, digest, size, mtime, actor, since) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
			repo, x.File, x.SHA512, x.Digest.String(), x.Size, mtime.UnixMicro(), tx.Actor(), ev)
		return err
	})
}

func checkSum(sum string) (string, error) {
	sum = strings.ToLower(sum)
	if b, err := hex.DecodeString(sum); err != nil || len(b) != sha512.Size {
		return "", fault.Invalid("source_sum", "%.40q is no sha512", sum)
	}
	return sum, nil
}

// cgi is the upload script of dist-git: a POST of a form with name, sha512sum and filename
// asks whether a file is there, one with name, sha512sum and file brings it. Clients match
// the words Available and Missing.
func (s *Store) cgi(w http.ResponseWriter, r *http.Request) error {
	mr, err := r.MultipartReader()
	if err != nil {
		return fault.Invalid("form", "the request is no multipart form").Wrap(err)
	}
	f := map[string]string{}
	var put *staged
	for {
		part, err := mr.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fault.Invalid("form", "the form is cut").Wrap(err)
		}
		if part.FormName() == "file" {
			if put != nil {
				return fault.Invalid("form", "the field file is there twice")
			}
			// Bytes are taken only from who may bring them, and only those that were announced.
			if f["name"] == "" || f["sha512sum"] == "" && f["md5sum"] == "" {
				return fault.Invalid("form", "the field name and the sum are not present before the field file").Fix("send name, sha512sum and file in this order")
			}
			if err := s.mayUpload(r.Context(), lookaside(f["name"])); err != nil {
				return err
			}
			if f["sha512sum"] == "" {
				break
			}
			sum, err := checkSum(f["sha512sum"])
			if err != nil {
				return err
			}
			if put, err = s.stage(r.Context(), part, sum); err != nil {
				return err
			}
			continue
		}
		b, err := io.ReadAll(io.LimitReader(part, 4096))
		if err != nil {
			return fault.Invalid("form", "the form is cut").Wrap(err)
		}
		if _, ok := f[part.FormName()]; ok || len(f) > 20 {
			return fault.Invalid("form", "the field %.40q is there twice", part.FormName())
		}
		f[part.FormName()] = string(b)
	}
	if f["name"] == "" {
		return fault.Invalid("form", "the field name is not present")
	}
	repo := lookaside(f["name"])
	if f["sha512sum"] == "" {
		if f["md5sum"] != "" {
			http.Error(w, "md5 is not accepted; use sha512sum", http.StatusNotAcceptable)
			return nil
		}
		return fault.Invalid("form", "the field sha512sum is not present")
	}
	sum, err := checkSum(f["sha512sum"])
	if err != nil {
		return err
	}
	if err := s.mayUpload(r.Context(), repo); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if name, ok := f["filename"]; ok {
		if err := checkFile(name); err != nil {
			return err
		}
		word := "Available"
		if _, _, err := s.findSource(r.Context(), repo, name, sum); fault.Code(err) == "source_unknown" {
			word = "Missing"
		} else if err != nil {
			return err
		}
		_, _ = io.WriteString(w, word+"\n")
		return nil
	}
	if put == nil {
		return fault.Invalid("form", "neither the field filename nor the field file is present")
	}
	mtime := time.UnixMicro(s.DB.Now())
	if m, err := strconv.ParseFloat(f["mtime"], 64); err == nil && m > 0 && m < 1e11 {
		mtime = time.UnixMicro(int64(m * 1e6))
	}
	if err := s.addSource(r.Context(), repo, Source{File: put.file, SHA512: sum, Digest: put.digest, Size: put.size}, mtime); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(w, "File %s size %d SHA512 %s stored OK\n", put.file, put.size, sum)
	return nil
}

func (s *Store) mayUpload(ctx context.Context, repo string) error {
	if err := CheckName(repo); err != nil {
		return err
	}
	if err := auth.Need(ctx, "pkg.upload", repo); err != nil {
		return err
	}
	_, err := s.Repo(ctx, repo)
	return err
}

// staged is a file that arrived with the sum it was announced with, and is not yet anybody's.
type staged struct {
	file   string
	digest blob.Digest
	size   int64
}

// summed makes the store refuse bytes with another sha512 before anybody sees them.
func summed(file, sum string) blob.PutOptions {
	h := sha512.New()
	return blob.PutOptions{Max: maxSource, Tee: h, Check: func(blob.Digest, int64) error {
		if hex.EncodeToString(h.Sum(nil)) != sum {
			return fault.Invalid("source_sum", "%s arrived with another sha512 than announced", file).Fix("upload it again")
		}
		return nil
	}}
}

func (s *Store) stage(ctx context.Context, part *multipart.Part, sum string) (*staged, error) {
	name := path.Base(strings.ReplaceAll(part.FileName(), `\`, "/"))
	if err := checkFile(name); err != nil {
		return nil, err
	}
	d, n, err := s.Blobs.Put(ctx, part, summed(name, sum))
	if err != nil {
		return nil, err
	}
	return &staged{name, d, n}, nil
}

// download serves /repo/pkgs/[NAMESPACE/]NAME/FILE/[sha512/]SUM/FILE, both shapes that
// DistGit's clients ask for.
func (s *Store) download(w http.ResponseWriter, r *http.Request) error {
	parts := strings.Split(strings.Trim(r.PathValue("path"), "/"), "/")
	no := fault.NotFound("source_unknown", "no source has the path %.300q", r.URL.Path)
	n := len(parts)
	if n < 4 || n > 6 {
		return no
	}
	file, sum := parts[n-1], parts[n-2]
	rest := parts[:n-2]
	if rest[len(rest)-1] == "sha512" {
		rest = rest[:len(rest)-1]
	}
	if len(rest) < 2 || len(rest) > 3 || rest[len(rest)-1] != file {
		return no
	}
	repo := lookaside(strings.Join(rest[:len(rest)-1], "/"))
	x, mtime, err := s.findSource(r.Context(), repo, file, strings.ToLower(sum))
	if err != nil {
		return err
	}
	b, err := s.Blobs.Get(x.Digest)
	if err != nil {
		return err
	}
	defer b.Close()
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("ETag", strconv.Quote(x.Digest.String()))
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	http.ServeContent(w, r, "", mtime, b)
	return nil
}

// Upload takes a piece of a source at an offset and returns how much is there; with the
// last piece the file is checked and kept. A client asks with an empty piece where to go on.
func (s *Store) Upload(ctx context.Context, repo, file, sum string, size, offset int64, r io.Reader) (int64, error) {
	if err := s.mayUpload(ctx, repo); err != nil {
		return 0, err
	}
	if err := checkFile(file); err != nil {
		return 0, err
	}
	sum, err := checkSum(sum)
	if err != nil {
		return 0, err
	}
	if size < 0 || size > maxSource {
		return 0, fault.TooLarge("source_size", "a source has at most %d bytes", int64(maxSource))
	}
	if x, _, err := s.findSource(ctx, repo, file, sum); err == nil {
		return x.Size, nil
	}
	// The id is the content's, not the file's: two people who upload the same share the work.
	up, err := s.Blobs.Stage(fmt.Sprintf("source-%s-%d", sum[:64], size), size)
	if err != nil {
		return 0, err
	}
	defer up.Close()
	// All of it may be there already: from a server that was killed before it had checked it.
	if up.Size() < size {
		if offset != up.Size() {
			return up.Size(), nil // the client goes on from there
		}
		if err := up.Append(ctx, offset, r); err != nil {
			return up.Size(), err
		}
		if up.Size() < size {
			return up.Size(), nil
		}
	}
	d, n, err := up.Finish(ctx, summed(file, sum))
	if err != nil {
		return 0, err
	}
	return n, s.addSource(ctx, repo, Source{File: file, SHA512: sum, Digest: d, Size: n}, time.UnixMicro(s.DB.Now()))
}

// UsedBlobs tells which of some blobs are sources in the lookaside cache.
func UsedBlobs(tx *db.Tx, ds []blob.Digest) ([]blob.Digest, error) {
	return db.Column[blob.Digest](tx, "SELECT digest FROM distgit_source WHERE digest IN (SELECT value->>'v' FROM json_each($1))", db.List(ds))
}
