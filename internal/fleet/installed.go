package fleet

import (
	"context"
	"maps"
	"slices"
	"strings"

	"drover/internal/auth"
	"drover/internal/db"
	"drover/internal/fleet/selector"
	"drover/internal/rpm"
)

// HavingOther takes packages, NAME.ARCH, with a version each, [EPOCH:]VERSION-RELEASE. It counts the
// hosts on which such a package is installed and the newest of it is of another version, and names
// all of them, sorted. No installed version is the empty one.
func (s *Store) HavingOther(ctx context.Context, versions map[string]string) (count map[string]int, hosts []string, err error) {
	if err := auth.Need(ctx, "host.read", "*"); err != nil {
		return nil, nil, err
	}
	type version struct {
		evr  string
		item int64
	}
	installed := map[string][]version{}
	on := map[int64]*selector.Set{} // by item
	names := map[string]bool{}
	for p := range versions {
		names[p[:max(0, strings.LastIndexByte(p, '.'))]] = true
	}
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		var items []int64
		err := tx.Each(func(scan func(...any) error) error {
			var id int64
			var name, evra string
			if err := scan(&id, &name, &evra); err != nil {
				return err
			}
			v := evr(evra)
			p := name + strings.TrimPrefix(evra, v)
			if _, asked := versions[p]; asked {
				installed[p] = append(installed[p], version{v, id})
				on[id] = &selector.Set{}
				items = append(items, id)
			}
			return nil
		}, "SELECT id, key, value FROM fleet_item WHERE kind = $1 AND key IN (SELECT value->>'v' FROM json_each($2))", kindPackage, db.List(slices.Collect(maps.Keys(names))))
		if err != nil {
			return err
		}
		return holders(tx, items, func(item, host int64) { on[item].Add(host) })
	})
	if err != nil {
		return nil, nil, err
	}
	in := s.everybody()
	count = map[string]int{}
	all := selector.Set{}
	for p, vs := range installed {
		slices.SortFunc(vs, func(a, b version) int { return rpm.CompareEVR(b.evr, a.evr) })
		same := selector.Set{} // hosts whose newest is the version that is given
		other := selector.Set{}
		for _, v := range vs {
			set := on[v.item]
			if rpm.CompareEVR(v.evr, versions[p]) == 0 {
				set.AndNot(other)
				same.Or(*set)
				continue
			}
			set.AndNot(same)
			other.Or(*set)
		}
		other.And(in)
		count[p] = other.Len()
		all.Or(other)
	}
	hosts = []string{}
	for _, m := range s.Members(all) {
		hosts = append(hosts, m.Name)
	}
	return count, hosts, nil
}

// Installed is every package that a host has: NAME-[EPOCH:]VERSION-RELEASE.ARCH.
func (s *Store) Installed(ctx context.Context) (map[string]bool, error) {
	if err := auth.Need(ctx, "host.read", "*"); err != nil {
		return nil, err
	}
	out := map[string]bool{}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var name, evra string
			err := scan(&name, &evra)
			out[name+"-"+evra] = true
			return err
		}, "SELECT key, value FROM fleet_item i WHERE kind = $1 AND EXISTS (SELECT 1 FROM fleet_has h JOIN fleet_host o ON o.id = h.host WHERE h.item = i.id AND h.until = 0 AND o.state = 'accepted')", kindPackage)
	})
	return out, err
}
