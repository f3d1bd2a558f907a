package mirrors

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"time"

	"drover/internal/auth"
	"drover/internal/blob"
	"drover/internal/db"
	"drover/internal/fault"
	"drover/internal/fetch"
	"drover/internal/repo"
	"drover/internal/repo/set"
	"drover/internal/repo/upstream"
	"drover/internal/repo/wire"
	"drover/internal/rpm"

	"golang.org/x/sync/errgroup"
)

// note writes the rows of packages that are fetched when they are asked for.
func (y *syncing) note(pkgs []rpm.PrimaryPackage, ms []set.Member, todo []int, words *upstream.Words) error {
	for part := range slices.Chunk(todo, bulk) {
		entries := make([]rpm.Template, len(part))
		for n, i := range part {
			p := pkgs[i]
			if p.Algo != "sha256" {
				return fault.Invalid("mirror_algo", "upstream names its packages by %s; on demand they have to be named by sha256", p.Algo).Fix("set the mirror without --on-demand")
			}
			var err error
			if entries[n], err = words.Of(p); err != nil {
				return err
			}
			ms[i].Package = mirrored(p, p.Sum, entries[n])
		}
		err := y.db.Write(y.ctx, func(tx *db.Tx) error {
			for n, i := range part {
				if err := y.Repo.KeepPackage(tx, ms[i].Package, entries[n]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	var absent []set.Member
	for _, m := range ms {
		if m.Core == "" {
			absent = append(absent, m)
		}
	}
	for part := range slices.Chunk(absent, bulk) {
		err := y.db.Write(y.ctx, func(tx *db.Tx) error {
			for _, m := range part {
				_, err := tx.Exec("INSERT INTO repo_absent (pkgid, mirror, href, tried, reason) SELECT pkgid, $1, $2, 0, '' FROM repo_package WHERE pkgid = $3 AND core = '' ON CONFLICT (pkgid, mirror) DO UPDATE SET href = excluded.href, tried = 0", y.m.Name, m.Href, m.PkgID)
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if y.say != nil {
		y.say(Progress{Packages: int64(len(pkgs)), Done: int64(len(pkgs) - len(absent))})
	}
	return nil
}

// bulk is how many rows are written in one transaction: others want to write too.
const bulk = 500

// retryAbsent is how long a package that upstream did not give is not asked for again.
const retryAbsent = time.Minute

// Fetch implements repo.Upstreams: it fetches a package now, once for all who ask.
func (s *Store) Fetch(ctx context.Context, pkgid string) (err error) {
	for range 3 {
		_, err, _ = s.making.Do(pkgid, func() (any, error) { return nil, s.fetchAbsent(auth.AsSystem(ctx), pkgid) })
		if !errors.Is(err, context.Canceled) || ctx.Err() != nil {
			break // else whoever asked first went away
		}
	}
	return err
}

// lacking is a package that is not here, and where it can be had.
type lacking struct {
	repo.Package
	mirror, href string
}

func (s *Store) fetchAbsent(ctx context.Context, pkgid string) error {
	var from []lacking
	var reason string
	here := false
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		var p repo.Package
		if err := repo.PackagesByID(tx, []string{pkgid}, func(q repo.Package) { p = q }); err != nil {
			return err
		}
		if here = p.Core != ""; here {
			return nil
		}
		return tx.Each(func(scan func(...any) error) error {
			l := lacking{Package: p}
			var tried int64
			var why string
			if err := scan(&l.mirror, &l.href, &tried, &why); err != nil {
				return err
			}
			if tried > tx.Now()-retryAbsent.Microseconds() {
				reason = why
				return nil
			}
			from = append(from, l)
			return nil
		}, "SELECT mirror, href, tried, reason FROM repo_absent WHERE pkgid = $1 ORDER BY mirror", pkgid)
	})
	if err != nil || here {
		return err
	}
	err = fault.Unavailable("package_absent", "the package is known by its mirror's metadata only, and could not be fetched").Wrap(errors.New(reason)).Fix("see `drover mirror show`; it is tried again in a minute")
	for _, l := range from {
		var u *upstream.Upstream
		var m Mirror
		if u, m, err = s.reach(ctx, l.mirror); err != nil {
			continue
		}
		err = s.fetchOne(ctx, u, m, l)
		u.Close()
		if err == nil {
			return nil
		}
	}
	return err
}

// reach opens a mirror's upstream to fetch packages.
func (s *Store) reach(ctx context.Context, name string) (u *upstream.Upstream, m Mirror, err error) {
	var mem memory
	if err := s.db.Read(ctx, func(tx *db.Tx) error { m, mem, err = getMirror(tx, name); return err }); err != nil {
		return nil, m, err
	}
	keys, err := wire.ReadKeys(m.Keys)
	if err != nil {
		return nil, m, err
	}
	if u, err = upstream.Open(s.fetching(), m.Source, s.Secrets, keys); err != nil {
		return nil, m, err
	}
	if err := u.Reach(ctx, mem.Seen, time.UnixMicro(s.db.Now())); err != nil {
		u.Close()
		return nil, m, err
	}
	return u, m, nil
}

// fetchOne fetches a package, checks it, keeps it and writes that down; or why it failed.
func (s *Store) fetchOne(ctx context.Context, u *upstream.Upstream, m Mirror, l lacking) error {
	n, err := rpm.ParseNEVRA(l.NEVRA)
	if err != nil {
		return err
	}
	w := rpm.PrimaryPackage{NEVRA: n, Sum: l.PkgID, Algo: "sha256", Href: l.href, Size: l.Size, BuildTime: l.Built, HeaderStart: l.Start, HeaderEnd: l.End}
	p := l.Package
	err = u.One(ctx, fetch.Want{Href: l.href, Algo: "sha256", Sum: l.PkgID, Size: l.Size, Max: upstream.MaxPackage}, func(f *os.File) error {
		keys := u.Keys
		if !m.VerifyPackages {
			keys = nil
		}
		q, err := upstream.CheckPackage(f, l.Size, w, keys)
		if err != nil {
			return err
		}
		p.Header, p.Start, p.End = q.HeaderSHA256(), q.HeaderStart, q.HeaderEnd
		p.Core, _, err = s.Repo.Blobs.Put(ctx, io.NewSectionReader(f, 0, l.Size), blob.PutOptions{Expect: blob.Digest(l.PkgID)})
		return err
	})
	if ctx.Err() != nil {
		return err
	}
	werr := s.db.Write(ctx, func(tx *db.Tx) error {
		if err != nil {
			_, werr := tx.Exec("UPDATE repo_absent SET tried = $1, reason = $2 WHERE pkgid = $3 AND mirror = $4", tx.Now(), clean(err), l.PkgID, l.mirror)
			return werr
		}
		if _, err := tx.Exec("UPDATE repo_package SET header = $1, core = $2, header_start = $3, header_end = $4 WHERE pkgid = $5 AND core = ''", p.Header, p.Core.String(), p.Start, p.End, p.PkgID); err != nil {
			return err
		}
		_, err := tx.Exec("DELETE FROM repo_absent WHERE pkgid = $1", p.PkgID)
		return err
	})
	return errors.Join(err, werr)
}

// Filling takes some packages at a time, so that a server that ends soon does not lose much, and
// comes back later to those that upstream does not give.
const (
	fillBatch = 100
	fillers   = 4
	fillAgain = time.Hour
)

// fill fetches some of what a mirror on demand lacks. more tells whether something is left to do.
func (s *Store) fill(ctx context.Context, name string) (more bool, err error) {
	var ls []lacking
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		places := map[string]string{}
		var ids []string
		err := tx.Each(func(scan func(...any) error) error {
			var id, href string
			err := scan(&id, &href)
			places[id] = href
			ids = append(ids, id)
			return err
		}, "SELECT pkgid, href FROM repo_absent WHERE mirror = $1 AND tried < $2 ORDER BY tried, pkgid LIMIT 100", name, tx.Now()-fillAgain.Microseconds())
		if err != nil {
			return err
		}
		return repo.PackagesByID(tx, ids, func(p repo.Package) { ls = append(ls, lacking{p, name, places[p.PkgID]}) })
	})
	if err != nil || len(ls) == 0 {
		return false, err
	}
	u, m, err := s.reach(ctx, name)
	if err != nil {
		return true, err
	}
	defer u.Close()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fillers)
	for _, l := range ls {
		g.Go(func() error {
			_, err, _ := s.making.Do(l.PkgID, func() (any, error) { return nil, s.fetchOne(gctx, u, m, l) })
			if c := fault.Code(err); c == "disk_full" || gctx.Err() != nil {
				return err
			}
			return nil // why is in its row
		})
	}
	return len(ls) == fillBatch, g.Wait()
}
