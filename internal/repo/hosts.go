package repo

import (
	"context"
	"slices"

	"drover/internal/auth"
	"drover/internal/db"
)

// Hosts knows what is installed where: the fleet.
type Hosts interface {
	// HavingOther takes packages, NAME.ARCH, with a version each, [EPOCH:]VERSION-RELEASE. It counts
	// the hosts on which such a package is installed and the newest of it is of another version, and
	// names all of them. No installed version is the empty one.
	HavingOther(ctx context.Context, versions map[string]string) (count map[string]int, hosts []string, err error)
	// Installed is every package that a host has: NAME-[EPOCH:]VERSION-RELEASE.ARCH.
	Installed(ctx context.Context) (map[string]bool, error)
}

// affected names the hosts that changes concern, and counts them at each: those that have the
// package and not in the newest version of it that there is now. It is nil for who may not read
// hosts.
func (s *Store) affected(ctx context.Context, cs []Change) ([]string, error) {
	if s.Hosts == nil || !auth.From(ctx).May("host.read", "*") {
		return nil, nil
	}
	versions := map[string]string{}
	for _, c := range cs {
		versions[c.Name+"."+c.Arch] = newest(c.Now)
	}
	count, hosts, err := s.Hosts.HavingOther(ctx, versions)
	for i, c := range cs {
		cs[i].Hosts = count[c.Name+"."+c.Arch]
	}
	return hosts, err
}

// keepInstalled takes those out of the snapshots that are to go, oldest first, that have a package
// which a host has and which no snapshot that stays has: of each such package the newest that has it.
func (s *Store) keepInstalled(ctx context.Context, gone []string) ([]string, error) {
	if s.Hosts == nil || len(gone) == 0 {
		return gone, nil
	}
	installed, err := s.Hosts.Installed(auth.AsSystem(ctx)) // what stays does not hang on who sweeps
	if err != nil || len(installed) == 0 {
		return gone, err
	}
	going := map[string]bool{}
	for _, id := range gone {
		going[id] = true
	}
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		nevra := map[string]string{} // of packages that a host has, by pkgid: signed by another key it is another
		err := tx.Each(func(scan func(...any) error) error {
			var id, n string
			err := scan(&id, &n)
			if installed[n] {
				nevra[id] = n
			}
			return err
		}, "SELECT pkgid, nevra FROM repo_package")
		if err != nil {
			return err
		}
		served := map[string]bool{} // of installed: what the snapshots have that were looked at
		seen := map[string]bool{}   // their chunks
		look := func(snapshot string) error {
			ts, err := s.treesOfSnapshot(tx, snapshot)
			if err != nil {
				return err
			}
			for _, t := range ts {
				for _, c := range t.chunks {
					if seen[c.ID] {
						continue
					}
					seen[c.ID] = true
					ps, err := s.places(tx, c.ID)
					if err != nil {
						return err
					}
					for _, p := range ps {
						if n, ok := nevra[p.PkgID]; ok {
							served[n] = true
						}
					}
				}
			}
			return nil
		}
		all, err := db.Column[string](tx, "SELECT id FROM repo_snapshot")
		if err != nil {
			return err
		}
		for _, id := range all {
			if going[id] {
				continue
			}
			if err := look(id); err != nil {
				return err
			}
		}
		for _, id := range slices.Backward(gone) {
			before := len(served)
			if err := look(id); err != nil {
				return err
			}
			if len(served) > before {
				delete(going, id)
			}
		}
		return nil
	})
	return slices.DeleteFunc(gone, func(id string) bool { return !going[id] }), err
}
