package rpmdb

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	"drover/internal/fault"
	"drover/internal/rpm"
)

// Package is an installed package.
type Package struct {
	Name        string
	Epoch       uint32
	Version     string
	Release     string
	Arch        string // empty for keys, which rpm keeps as packages named gpg-pubkey
	Vendor      string
	SourceRPM   string // file name of the source package
	Modularity  string // "name:stream:version:context" of a modular package
	InstallTime int64  // seconds since 1970
	BuildTime   int64
	Size        uint64 // of all files, in bytes
	Key         string // id of the key that signed it, 16 hex digits; empty when it is not signed
}

// EVR is "[epoch:]version-release".
func (p Package) EVR() string {
	return rpm.NEVRA{Epoch: p.Epoch, Version: p.Version, Release: p.Release}.EVR()
}

// NEVRA is "name-[epoch:]version-release.arch"; an epoch of 0 is left out, and so is the arch of
// what has none.
func (p Package) NEVRA() string {
	s := p.Name + "-" + p.EVR()
	if p.Arch != "" {
		s += "." + p.Arch
	}
	return s
}

// IsKey tells whether it is a public key that was imported, and no package.
func (p Package) IsKey() bool { return p.Name == "gpg-pubkey" }

// Tags that only installed headers have (rpm's include/rpm/rpmtag.h).
const (
	tagInstallTime rpm.Tag = 1008
	tagFileStates  rpm.Tag = 1029
)

func packageOf(h rpm.Header) Package {
	p := Package{Name: h.String(rpm.Name), Epoch: uint32(h.Int(rpm.Epoch)), Version: h.String(rpm.Version), Release: h.String(rpm.Release), Arch: h.String(rpm.Arch),
		Vendor: h.String(rpm.Vendor), SourceRPM: h.String(rpm.SourceRPM), Modularity: h.String(rpm.Modularity),
		InstallTime: int64(h.Int(tagInstallTime)), BuildTime: int64(h.Int(rpm.BuildTime)), Size: h.Int(rpm.Size)}
	if h.Has(rpm.LongSize) {
		p.Size = h.Int(rpm.LongSize)
	}
	if s := signatures(h); len(s) > 0 {
		p.Key = fmt.Sprintf("%016x", s[0].KeyID)
	}
	return p
}

// signatures are those of the package's file, which rpm keeps under the same tags in the header of
// the installed package.
func signatures(h rpm.Header) []rpm.Signature {
	return (&rpm.Package{Sig: h, Header: h}).Signatures()
}

// maxPackages bounds what is read of one database.
const maxPackages = 100_000

// scan gives each header that a query finds. Its one or two columns are the number of the header in
// the database and the header.
func scan(ctx context.Context, tx *sql.Tx, fn func(hnum int64, h rpm.Header) error, query string, args ...any) (err error) {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, rows.Close()) }()
	for n := 0; rows.Next(); n++ {
		if n == maxPackages {
			return fault.TooLarge("rpmdb_large", "the package database has over %d packages", maxPackages)
		}
		var hnum int64
		var blob sql.RawBytes
		if err := rows.Scan(&hnum, &blob); err != nil {
			return err
		}
		h, err := rpm.ParseInstalled(blob)
		if err != nil {
			// To go on without it would look as if the package had been removed.
			return fault.Invalid("rpmdb_damaged", "header %d of the package database cannot be read", hnum).Wrap(err).Fix("run `rpmdb --rebuilddb`")
		}
		if err := fn(hnum, h); err != nil {
			return err
		}
	}
	return rows.Err()
}

const (
	allHeaders   = "SELECT hnum, blob FROM Packages ORDER BY hnum"
	namedHeaders = "SELECT hnum, blob FROM Packages WHERE hnum IN (SELECT hnum FROM Name WHERE key = $1) ORDER BY hnum"
)

// List is all packages that are installed below root, by name and version. Without a database the
// error has code rpmdb_missing.
func List(ctx context.Context, root string) ([]Package, error) {
	var out []Package
	err := read(ctx, root, func(tx *sql.Tx) error {
		out = nil
		return scan(ctx, tx, func(_ int64, h rpm.Header) error {
			out = append(out, packageOf(h))
			return nil
		}, allHeaders)
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(out, order)
	return out, nil
}

func order(a, b Package) int {
	return cmp.Or(strings.Compare(a.Name, b.Name), rpm.CompareEVR(a.EVR(), b.EVR()), strings.Compare(a.Arch, b.Arch), cmp.Compare(a.InstallTime, b.InstallTime))
}
