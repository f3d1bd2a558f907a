package release

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"regexp"
	"slices"
	"strings"

	"drover/internal/auth"
	"drover/internal/build"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/rpm"
)

//go:embed migrations
var migrations embed.FS

// Schema is the tables of tags, targets and what is tagged.
func Schema() db.Schema { return db.Schema{Name: "release", FS: migrations} }

// Store keeps tags and targets.
type Store struct{ db *db.DB }

// New makes a Store on d.
func New(d *db.DB) *Store { return &Store{d} }

// Tag is a named, versioned set of builds with what it needs to be built from and
// published.
type Tag struct {
	Name   string   `json:"name"`
	Arches []string `json:"arches" doc:"what it is built for; the first also builds noarch packages"`
	Key    string   `json:"key,omitempty" doc:"signing key; without one its repository is not signed"`
	Codec  string   `json:"codec,omitempty" enum:"zst,gz," doc:"compression of the repository metadata: zst (default) or gz"`
	// For readers that are more particular than dnf; both cost time at each change.
	SingleFrame  bool              `json:"single_frame,omitempty" doc:"pack each metadata file as one frame"`
	OpenChecksum bool              `json:"open_checksum,omitempty" doc:"tell the checksums of the unpacked metadata too"`
	Mirrors      []string          `json:"mirrors,omitempty" doc:"channels that a buildroot installs from beside the tag itself"`
	Install      []string          `json:"install,omitempty" doc:"packages in a buildroot before BuildRequires; CentOS Stream's build group when empty"`
	Macros       map[string]string `json:"macros,omitempty" doc:"rpm macros, such as dist"`
	Comps        string            `json:"comps,omitempty" doc:"comps.xml that is published with it"`
	Locked       bool              `json:"locked,omitempty" doc:"no build goes in or out"`
	Since        int64             `json:"since,omitempty" doc:"event that made this state"`
}

// Target is a pair: builds are made in the build tag and land in the destination tag.
type Target struct {
	Name     string `json:"name"`
	BuildTag string `json:"build_tag"`
	DestTag  string `json:"dest_tag"`
	Since    int64  `json:"since,omitempty"`
}

var (
	reName  = regexp.MustCompile(`^[a-z0-9][a-z0-9_.+-]{0,99}$`)
	reArch  = regexp.MustCompile(`^[a-z0-9_]{2,20}$`)
	rePkg   = regexp.MustCompile(`^[A-Za-z0-9@][A-Za-z0-9_.+()/: -]{0,199}$`)
	reMacro = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{1,60}$`)
	reValue = regexp.MustCompile(`^[A-Za-z0-9_.,:/=+~^ -]{0,200}$`)
)

func (t Tag) check() error {
	no := func(format string, args ...any) error { return fault.Invalid("tag", format, args...) }
	if !reName.MatchString(t.Name) {
		return fault.Invalid("tag", "%.100q is no name of a tag", t.Name).Fix("use 1 to 100 of a-z 0-9 _ . + -, a letter or digit first")
	}
	if len(t.Arches) == 0 || len(t.Arches) > 20 {
		return no("a tag has 1 to 20 arches")
	}
	for _, a := range t.Arches {
		if !reArch.MatchString(a) || a == "src" || a == "noarch" {
			return no("%.40q is no arch of a tag", a)
		}
	}
	for _, m := range append(slices.Clone(t.Mirrors), optional(t.Key)...) {
		if !reName.MatchString(m) {
			return no("%.100q is no name of a channel or key", m)
		}
	}
	for _, p := range t.Install {
		if !rePkg.MatchString(p) {
			return no("%.100q is no package", p)
		}
	}
	for k, v := range t.Macros {
		if !reMacro.MatchString(k) || !reValue.MatchString(v) {
			return no("the macro %.60q may not be set to %.100q", k, v)
		}
	}
	if t.Codec != "" && t.Codec != "zst" && t.Codec != "gz" {
		return no("%.20q is no codec", t.Codec)
	}
	if t.Comps != "" {
		if _, err := rpm.ReadComps(strings.NewReader(t.Comps)); err != nil {
			return fault.Invalid("tag", "the comps.xml of the tag %s cannot be read", t.Name).Wrap(err).Fix("hosts could not read the repository; correct the file")
		}
	}
	if len(t.Comps) > 1<<20 || len(t.Install) > 500 || len(t.Macros) > 100 || len(t.Mirrors) > 20 {
		return no("a tag's lists are bounded: 500 packages, 100 macros, 20 mirrors, 1 MiB of comps")
	}
	return nil
}

func optional(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// SetTag makes a tag or changes it. The same state again changes nothing.
func (s *Store) SetTag(ctx context.Context, t Tag) error {
	if err := auth.Need(ctx, "tag.edit", t.Name); err != nil {
		return err
	}
	if err := t.check(); err != nil {
		return err
	}
	t.Since = 0
	text, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		var had string
		err := tx.QueryRow("SELECT config FROM release_tag WHERE name = $1 AND until = 0", t.Name).Scan(&had)
		if err != nil && !db.NoRow(err) || had == string(text) {
			return err
		}
		told := t // a comps.xml is longer than a line of the ledger: its digest stands for it
		if t.Comps != "" {
			sum := sha256.Sum256([]byte(t.Comps))
			told.Comps = "sha256:" + hex.EncodeToString(sum[:])
		}
		ev, err := event.Append(tx, "tag.set", "tag/"+t.Name, told)
		if err != nil {
			return err
		}
		if _, err := tx.Exec("UPDATE release_tag SET until = $1 WHERE name = $2 AND until = 0", ev, t.Name); err != nil {
			return err
		}
		_, err = tx.Exec("INSERT INTO release_tag (name, config, since, until) VALUES ($1, $2, $3, 0)", t.Name, string(text), ev)
		return err
	})
}

// SetTarget makes a target or changes it.
func (s *Store) SetTarget(ctx context.Context, t Target) error {
	if err := auth.Need(ctx, "tag.edit", t.DestTag); err != nil {
		return err
	}
	if !reName.MatchString(t.Name) {
		return fault.Invalid("target", "%.100q is no name of a target", t.Name)
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		for _, n := range []string{t.BuildTag, t.DestTag} {
			if _, err := tagAt(tx, n, event.Now); err != nil {
				return err
			}
		}
		had, err := target(tx, t.Name)
		if err == nil && had.BuildTag == t.BuildTag && had.DestTag == t.DestTag {
			return nil
		}
		if err != nil && fault.Code(err) != "target_unknown" {
			return err
		}
		ev, err := event.Append(tx, "target.set", "target/"+t.Name, t)
		if err != nil {
			return err
		}
		if _, err := tx.Exec("UPDATE release_target SET until = $1 WHERE name = $2 AND until = 0", ev, t.Name); err != nil {
			return err
		}
		_, err = tx.Exec("INSERT INTO release_target (name, build_tag, dest_tag, since, until) VALUES ($1, $2, $3, $4, 0)", t.Name, t.BuildTag, t.DestTag, ev)
		return err
	})
}

// At reads a tag as of an event, or event.Now.
func (s *Store) At(tx *db.Tx, name string, at int64) (Tag, error) { return tagAt(tx, name, at) }

func tagAt(tx *db.Tx, name string, at int64) (Tag, error) {
	var text string
	var since int64
	err := tx.QueryRow("SELECT config, since FROM release_tag WHERE name = $1 AND since <= $2 AND (until = 0 OR until > $2) ORDER BY since DESC LIMIT 1", name, at).Scan(&text, &since)
	if db.NoRow(err) {
		return Tag{}, fault.NotFound("tag_unknown", "there is no tag %.100q", name).Fix("see `drover tag list`")
	}
	if err != nil {
		return Tag{}, err
	}
	t := Tag{}
	err = json.Unmarshal([]byte(text), &t)
	t.Since = since
	return t, err
}

// Tag reads a tag as of an event number or time; "" is now.
func (s *Store) Tag(ctx context.Context, name, asOf string) (t Tag, err error) {
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		at, err := event.AsOf(tx, asOf)
		if err != nil {
			return err
		}
		t, err = tagAt(tx, name, at)
		return err
	})
	return t, err
}

// Tags lists the tags of now.
func (s *Store) Tags(ctx context.Context) ([]Tag, error) {
	out := []Tag{}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var text string
			var since int64
			if err := scan(&text, &since); err != nil {
				return err
			}
			var t Tag
			err := json.Unmarshal([]byte(text), &t)
			t.Since = since
			out = append(out, t)
			return err
		}, "SELECT config, since FROM release_tag WHERE until = 0 ORDER BY name")
	})
	return out, err
}

func target(tx *db.Tx, name string) (t Target, err error) {
	t.Name = name
	err = tx.QueryRow("SELECT build_tag, dest_tag, since FROM release_target WHERE name = $1 AND until = 0", name).Scan(&t.BuildTag, &t.DestTag, &t.Since)
	if db.NoRow(err) {
		return t, fault.NotFound("target_unknown", "there is no target %.100q", name).Fix("see `drover target list`")
	}
	return t, err
}

// Targets lists the targets of now.
func (s *Store) Targets(ctx context.Context) ([]Target, error) {
	out := []Target{}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var t Target
			err := scan(&t.Name, &t.BuildTag, &t.DestTag, &t.Since)
			out = append(out, t)
			return err
		}, "SELECT name, build_tag, dest_tag, since FROM release_target WHERE until = 0 ORDER BY name")
	})
	return out, err
}

// For is what a build needs to know of a target.
func (s *Store) For(tx *db.Tx, name string) (build.Target, error) {
	t, err := target(tx, name)
	if err != nil {
		return build.Target{}, err
	}
	bt, err := tagAt(tx, t.BuildTag, event.Now)
	if err != nil {
		return build.Target{}, err
	}
	dest, err := tagAt(tx, t.DestTag, event.Now)
	if err != nil {
		return build.Target{}, err
	}
	if dest.Locked {
		return build.Target{}, locked(dest.Name)
	}
	if len(bt.Install) == 0 {
		bt.Install = build.DefaultInstall()
	}
	return build.Target{Name: t.Name, BuildTag: t.BuildTag, DestTag: t.DestTag, Arches: bt.Arches, Install: bt.Install, Macros: bt.Macros}, nil
}

func locked(tag string) error {
	return fault.Conflict("tag_locked", "the tag %s is locked", tag).Fix("unlock it with `drover tag set %s --no-locked`", tag)
}

// Put puts a build that has just become complete into its tag, in the caller's transaction;
// again, it changes nothing. A tag that was locked meanwhile does not get it: the work is not
// lost, the build can be tagged later.
func (s *Store) Put(tx *db.Tx, tag string, id int64, pkg string) error {
	t, err := tagAt(tx, tag, event.Now)
	if err != nil {
		return err
	}
	if t.Locked {
		_, err := event.Append(tx, "tag.skipped", "tag/"+tag, map[string]any{"build": id, "package": pkg, "why": "the tag is locked"})
		return err
	}
	return put(tx, tag, id, pkg)
}

func put(tx *db.Tx, tag string, id int64, pkg string) error {
	var n int
	if err := tx.QueryRow("SELECT COUNT(*) FROM release_tagging WHERE tag = $1 AND build = $2 AND until = 0", tag, id).Scan(&n); err != nil || n > 0 {
		return err
	}
	ev, err := event.Append(tx, "tag.build", "tag/"+tag, map[string]any{"build": id, "package": pkg})
	if err != nil {
		return err
	}
	_, err = tx.Exec("INSERT INTO release_tagging (tag, build, package, since, until) VALUES ($1, $2, $3, $4, 0)", tag, id, pkg, ev)
	return err
}

// open makes sure that a tag is there and not locked.
func open(tx *db.Tx, tag string) error {
	t, err := tagAt(tx, tag, event.Now)
	if err == nil && t.Locked {
		err = locked(tag)
	}
	return err
}

// TagBuild puts a complete build into a tag by hand.
func (s *Store) TagBuild(ctx context.Context, builds *build.Store, tag, ref string) error {
	if err := auth.Need(ctx, "tag.build", tag); err != nil {
		return err
	}
	b, err := builds.Find(ctx, ref)
	if err != nil {
		return err
	}
	if b.State != build.Complete || b.Scratch {
		return fault.Conflict("build_state", "build %d is %s and cannot be tagged", b.ID, strings.ToLower(string(b.State))).Fix("only a complete build that is no scratch build can be")
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		if err := open(tx, tag); err != nil {
			return err
		}
		return put(tx, tag, b.ID, b.Package)
	})
}

// UntagBuild takes a build out of a tag.
func (s *Store) UntagBuild(ctx context.Context, builds *build.Store, tag, ref string) error {
	if err := auth.Need(ctx, "tag.build", tag); err != nil {
		return err
	}
	b, err := builds.Find(ctx, ref)
	if err != nil {
		return err
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		if err := open(tx, tag); err != nil {
			return err
		}
		var n int
		if err := tx.QueryRow("SELECT COUNT(*) FROM release_tagging WHERE tag = $1 AND build = $2 AND until = 0", tag, b.ID).Scan(&n); err != nil {
			return err
		}
		if n == 0 {
			return fault.NotFound("not_tagged", "%s is not in %s", b.NVR, tag)
		}
		ev, err := event.Append(tx, "tag.untag", "tag/"+tag, map[string]any{"build": b.ID, "package": b.Package})
		if err != nil {
			return err
		}
		_, err = tx.Exec("UPDATE release_tagging SET until = $1 WHERE tag = $2 AND build = $3 AND until = 0", ev, tag, b.ID)
		return err
	})
}

// Tagged is a build in a tag.
type Tagged struct {
	Build   int64  `json:"build"`
	Package string `json:"package"`
	Since   int64  `json:"since"`
}

// Latest reads what a tag holds as of an event, or event.Now: of each package the build that was
// tagged last, as in Koji.
func (s *Store) Latest(tx *db.Tx, tag string, at int64) ([]Tagged, error) {
	out := []Tagged{}
	err := tx.Each(func(scan func(...any) error) error {
		var t Tagged
		err := scan(&t.Build, &t.Package, &t.Since)
		if n := len(out); n > 0 && out[n-1].Package == t.Package {
			out = out[:n-1] // rows of a package come oldest first
		}
		out = append(out, t)
		return err
	}, "SELECT build, package, since FROM release_tagging WHERE tag = $1 AND since <= $2 AND (until = 0 OR until > $2) ORDER BY package, since", tag, at)
	return out, err
}

// Content reads what a tag holds as of a time, for people.
func (s *Store) Content(ctx context.Context, tag, asOf string) (out []Tagged, err error) {
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		at, err := event.AsOf(tx, asOf)
		if err != nil {
			return err
		}
		if _, err := tagAt(tx, tag, at); err != nil {
			return err
		}
		out, err = s.Latest(tx, tag, at)
		return err
	})
	return out, err
}

// LatestOf is Latest for some packages.
func (s *Store) LatestOf(tx *db.Tx, tag string, at int64, pkgs []string) ([]Tagged, error) {
	var out []Tagged
	for _, p := range pkgs {
		t := Tagged{Package: p}
		err := tx.QueryRow("SELECT build, since FROM release_tagging WHERE tag = $1 AND package = $2 AND since <= $3 AND (until = 0 OR until > $3) ORDER BY since DESC LIMIT 1", tag, p, at).Scan(&t.Build, &t.Since)
		if db.NoRow(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

// ChangedSince lists the packages of which a build went into the tag or out of it after an
// event.
func (s *Store) ChangedSince(tx *db.Tx, tag string, since int64) ([]string, error) {
	return db.Column[string](tx, "SELECT package FROM release_tagging WHERE tag = $1 AND since > $2 UNION SELECT package FROM release_tagging WHERE tag = $1 AND until > $2 ORDER BY package", tag, since)
}

// Changed is the number of the newest event that changed what a tag publishes.
func (s *Store) Changed(tx *db.Tx, tag string) (int64, error) {
	var id int64
	err := tx.QueryRow(`SELECT MAX(n) FROM (SELECT MAX(since) AS n FROM release_tag WHERE name = $1 UNION ALL
		SELECT MAX(since) FROM release_tagging WHERE tag = $1 UNION ALL SELECT MAX(until) FROM release_tagging WHERE tag = $1) AS changes`, tag).Scan(&id)
	return id, err
}
