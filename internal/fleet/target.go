package fleet

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"drover/internal/auth"
	"drover/internal/db"
	"drover/internal/fault"
	"drover/internal/fleet/selector"
	"drover/internal/fleet/wire"
)

// maxNesting is how deep groups may name groups.
const maxNesting = 20

// Select is the set of hosts that a target means: of those that are let in.
func (s *Store) Select(ctx context.Context, form selector.Form, target string) (selector.Set, error) {
	n, err := selector.Parse(form, target)
	if err != nil {
		return nil, err
	}
	return s.eval(ctx, n, 0)
}

// SelectNames are the names of the hosts that a target means, sorted.
func (s *Store) SelectNames(ctx context.Context, form selector.Form, target string) ([]string, error) {
	if err := auth.Need(ctx, "host.read", "*"); err != nil {
		return nil, err
	}
	set, err := s.Select(ctx, form, target)
	if err != nil {
		return nil, err
	}
	out := []string{}
	for _, m := range s.Members(set) {
		out = append(out, m.Name)
	}
	return out, nil
}

func (s *Store) eval(ctx context.Context, n *selector.Node, depth int) (selector.Set, error) {
	if depth > maxNesting {
		return nil, fault.Invalid("group_deep", "groups name groups more than %d deep", maxNesting)
	}
	return selector.Eval(n, s.everybody(), func(l *selector.Leaf) (selector.Set, error) { return s.leaf(ctx, l, depth) })
}

// everybody is the hosts that are let in.
func (s *Store) everybody() (out selector.Set) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.members {
		out.Add(id)
	}
	return out
}

// checkGroups fails when a selector leads back to one of the groups that it is of.
func (s *Store) checkGroups(ctx context.Context, n *selector.Node, above []string) error {
	gs, err := s.groups(ctx)
	if err != nil {
		return err
	}
	for _, name := range groupsIn(n) {
		if slices.Contains(above, name) {
			return fault.Invalid("group_circle", "the group %s would be part of itself", name)
		}
		for _, g := range gs {
			if g.Name != name {
				continue
			}
			sub, err := selector.Parse(selector.Form(g.Form), g.Target)
			if err != nil {
				return err
			}
			if err := s.checkGroups(ctx, sub, append(slices.Clone(above), name)); err != nil {
				return err
			}
		}
	}
	return nil
}

func groupsIn(n *selector.Node) (out []string) {
	if n.Op == selector.IsLeaf && n.Leaf.Kind == selector.ByGroup {
		return []string{n.Leaf.Key}
	}
	for _, k := range n.Kids {
		out = append(out, groupsIn(k)...)
	}
	return out
}

// leaf answers one question about all hosts.
func (s *Store) leaf(ctx context.Context, l *selector.Leaf, depth int) (selector.Set, error) {
	switch l.Kind {
	case selector.ByName, selector.ByNames, selector.ByOnline, selector.ByAgent:
		return s.bySelf(l), nil
	case selector.ByGroup:
		gs, err := s.groups(ctx)
		if err != nil {
			return nil, err
		}
		for _, g := range gs {
			if g.Name == l.Key {
				n, err := selector.Parse(selector.Form(g.Form), g.Target)
				if err != nil {
					return nil, err
				}
				return s.eval(ctx, n, depth+1)
			}
		}
		return nil, fault.NotFound("group_unknown", "there is no group %.100q", l.Key).Fix("see `drover group list`")
	case selector.ByPillar:
		return nil, fault.Invalid("pillar_later", "hosts cannot be chosen by pillar yet").Fix("choose by a fact, a label or a group")
	case selector.BySubnet:
		return s.bySubnet(ctx, l)
	case selector.ByLabel:
		return s.byLabel(ctx, l)
	case selector.ByFact:
		return s.byFact(ctx, l)
	case selector.ByPackage:
		return s.byItem(ctx, kindPackage, l.Key, l)
	case selector.ByService:
		if l.Cmp == selector.Present {
			l = &selector.Leaf{Kind: l.Kind, Key: l.Key, Cmp: selector.Equal, Value: "running"}
		}
		return s.byItem(ctx, wire.KindService, strings.TrimSuffix(l.Key, ".service"), l)
	case selector.ByPort:
		if strings.Contains(l.Key, "/") {
			return s.byItem(ctx, wire.KindPort, l.Key, l)
		}
		out, err := s.byItem(ctx, wire.KindPort, "tcp/"+l.Key, l)
		if err != nil {
			return nil, err
		}
		udp, err := s.byItem(ctx, wire.KindPort, "udp/"+l.Key, l)
		out.Or(udp)
		return out, err
	}
	return nil, fault.Internal("leaf", "nobody answers %q", string(l.Kind))
}

// bySelf answers from what this process knows of the hosts.
func (s *Store) bySelf(l *selector.Leaf) (out selector.Set) {
	texts := map[int64]string{}
	s.mu.Lock()
	for id, m := range s.members {
		switch l.Kind {
		case selector.ByOnline:
			if s.view(m).Presence == Online {
				out.Add(id)
			}
		case selector.ByAgent:
			texts[id] = m.version
		default:
			texts[id] = m.name
		}
	}
	s.mu.Unlock()
	for id, text := range texts { // a pattern may take its time: nobody waits for it
		if l.MatchText(text) {
			out.Add(id)
		}
	}
	return out
}

// base is a key without the number of an element of a list.
func base(key string) string {
	if i := strings.LastIndexByte(key, ':'); i > 0 && i < len(key)-1 && strings.Trim(key[i+1:], "0123456789") == "" {
		return key[:i]
	}
	return key
}

// factsBelow are the facts with a key, or one that begins with it and ":"; with no key all facts.
// From one base to the next it goes by the index: there are few bases and many facts, and a LIKE
// would look at each of them.
const factsBelow = `SELECT id, key, value FROM fleet_item WHERE kind = $1 AND base IN (
	WITH RECURSIVE b(x) AS (
		SELECT CAST($2 AS TEXT)
		UNION ALL SELECT (SELECT base FROM fleet_item WHERE kind = $1 AND base > b.x ORDER BY base LIMIT 1) FROM b WHERE b.x IS NOT NULL
	) SELECT x FROM b WHERE $2 = '' OR x = $2 OR x LIKE $3 ESCAPE '\')`

// byFact finds the hosts that have a fact, or one within it, that the leaf asks for.
func (s *Store) byFact(ctx context.Context, l *selector.Leaf) (out selector.Set, err error) {
	top := l.Top()
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		return s.itemHosts(tx, &out, l.MatchFact, factsBelow, wire.KindFact, top, db.Like(top+":"))
	})
	return out, err
}

// byItem finds the hosts that have something of a kind with a key, or an element of a list with it,
// whose value is what the leaf asks for.
func (s *Store) byItem(ctx context.Context, kind, key string, l *selector.Leaf) (out selector.Set, err error) {
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		return s.itemHosts(tx, &out, func(k, value string) bool {
			if kind == kindPackage {
				value = evr(value)
			}
			return (k == key || base(k) == key) && l.MatchText(value)
		}, "SELECT id, key, value FROM fleet_item WHERE kind = $1 AND base IN ($2, $3)", kind, key, base(key))
	})
	return out, err
}

// itemHosts finds the hosts that have one of the items of a query that match. The values are
// compared here, the hosts found by number.
func (s *Store) itemHosts(tx *db.Tx, out *selector.Set, match func(key, value string) bool, query string, args ...any) error {
	var items []int64
	err := tx.Each(func(scan func(...any) error) error {
		var id int64
		var k, v string
		if err := scan(&id, &k, &v); err != nil {
			return err
		}
		if match(k, v) {
			items = append(items, id)
		}
		return nil
	}, query, args...)
	if err != nil {
		return err
	}
	return holders(tx, items, func(_, host int64) { out.Add(host) })
}

// holders calls fn with each host that has one of some items. The items come by number, not by what
// chooses them: SQLite would go through all that all hosts have.
func holders(tx *db.Tx, items []int64, fn func(item, host int64)) error {
	if len(items) == 0 {
		return nil
	}
	rows := make(map[string]map[string]int64, len(items))
	for i, id := range items {
		rows[strconv.Itoa(i)] = map[string]int64{"i": id}
	}
	text, err := json.Marshal(rows)
	if err != nil {
		return err
	}
	return tx.Each(func(scan func(...any) error) error {
		var item, host int64
		err := scan(&item, &host)
		if err == nil {
			fn(item, host)
		}
		return err
	}, "SELECT h.item, h.host FROM json_each($1) j JOIN fleet_has h ON h.item = CAST(j.value->>'i' AS BIGINT) WHERE h.until = 0", string(text))
}

// bySubnet finds the hosts that have an address in a network.
func (s *Store) bySubnet(ctx context.Context, l *selector.Leaf) (out selector.Set, err error) {
	key := "ipv4"
	if l.Prefix.Addr().Is6() {
		key = "ipv6"
	}
	return s.byItem(ctx, wire.KindFact, key, l)
}

func (s *Store) byLabel(ctx context.Context, l *selector.Leaf) (out selector.Set, err error) {
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var id int64
			var v string
			err := scan(&id, &v)
			if l.MatchText(v) {
				out.Add(id)
			}
			return err
		}, "SELECT host, value FROM fleet_label WHERE key = $1 AND until = 0", l.Key)
	})
	return out, err
}

// Mine is what the hosts of a target share under a name, as Salt's mine.get gives it.
func (s *Store) Mine(ctx context.Context, form selector.Form, target, name string) (map[string]any, error) {
	set, err := s.Select(ctx, form, target)
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var id int64
			var host, v string
			if err := scan(&id, &host, &v); err != nil || !set.Has(id) {
				return err
			}
			var x any
			if err := json.Unmarshal([]byte(v), &x); err != nil {
				x = v
			}
			out[host] = x
			return nil
		}, "SELECT f.id, f.name, i.value FROM fleet_item i JOIN fleet_has h ON h.item = i.id AND h.until = 0 JOIN fleet_host f ON f.id = h.host AND f.state = 'accepted' WHERE i.kind = 'mine' AND i.key = $1", name)
	})
	return out, err
}
