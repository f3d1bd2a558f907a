package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"drover/internal/auth"
	"drover/internal/db"
	"drover/internal/fault"
	"drover/internal/fleet/wire"
)

// kindPackage is the kind of packages; their key is the name, and their value
// [EPOCH:]VERSION-RELEASE.ARCH.
const kindPackage = "package"

// Bounds of what is stored.
const (
	maxKey    = 500
	maxValue  = 1000
	maxFiling = 16      // reports in one transaction
	maxItems  = 500_000 // that are remembered by number
)

// item is a thing that hosts have.
type item struct{ kind, key, value string }

// filing is a report on its way into the database.
type filing struct {
	host   int64
	base   string
	digest string
	full   bool
	add    []item
	gone   []item
	result chan error
}

// Report stores what a host tells of itself. It returns when that is stored.
func (s *Store) Report(ctx context.Context, r wire.Report) error {
	id, err := Caller(ctx)
	if err != nil {
		return err
	}
	f := &filing{host: id, base: r.Base, digest: r.Digest, full: r.Base == "", result: make(chan error, 1)}
	if len(r.Digest) < 8 || len(r.Digest) > 100 {
		return fault.Invalid("report", "a report has a digest of 8 to 100 letters")
	}
	if f.add, f.gone, err = itemsOf(r); err != nil {
		return err
	}
	select {
	case s.reports <- f:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-f.result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func itemsOf(r wire.Report) (add, gone []item, err error) {
	n := len(r.Add) + len(r.Remove)
	for _, m := range r.Set {
		n += len(m)
	}
	for _, l := range r.Gone {
		n += len(l)
	}
	if n > wire.MaxFacts+wire.MaxPackages {
		return nil, nil, fault.TooLarge("report_large", "a report of %d lines; at most %d", n, wire.MaxFacts+wire.MaxPackages).Fix("look for a custom fact with very many values")
	}
	known := func(kind string) bool {
		return slices.Contains([]string{wire.KindFact, wire.KindService, wire.KindPort, wire.KindMine}, kind)
	}
	for kind, m := range r.Set {
		if !known(kind) {
			return nil, nil, fault.Invalid("report_kind", "%.40q is no kind of what a host tells", kind)
		}
		for k, v := range m {
			add = append(add, item{kind, clip(k, maxKey), clip(v, maxValue)})
		}
	}
	for kind, l := range r.Gone {
		if !known(kind) {
			return nil, nil, fault.Invalid("report_kind", "%.40q is no kind of what a host tells", kind)
		}
		for _, k := range l {
			gone = append(gone, item{kind: kind, key: clip(k, maxKey)})
		}
	}
	for i, l := range [][]string{r.Add, r.Remove} {
		for _, nevra := range l {
			name, evra, err := splitNEVRA(nevra)
			if err != nil {
				return nil, nil, err
			}
			if p := (item{kindPackage, name, evra}); i == 0 {
				add = append(add, p)
			} else {
				gone = append(gone, p)
			}
		}
	}
	return add, gone, nil
}

// clip cuts a text and keeps it valid for both databases.
func clip(s string, most int) string {
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "\uFFFD")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return s
}

// splitNEVRA splits NAME-[EPOCH:]VERSION-RELEASE.ARCH after the name.
func splitNEVRA(s string) (name, evra string, err error) {
	r := strings.LastIndexByte(s, '-')
	if r > 0 {
		if v := strings.LastIndexByte(s[:r], '-'); v > 0 && strings.Contains(s[r:], ".") && len(s) <= maxKey && !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
			return s[:v], clip(s[v+1:], maxValue), nil
		}
	}
	return "", "", fault.Invalid("report_package", "%.100q is no package", s).Fix("a package is NAME-[EPOCH:]VERSION-RELEASE.ARCH")
}

// EVR is the version of an item of a package, without the arch.
func evr(evra string) string {
	if i := strings.LastIndexByte(evra, '.'); i > 0 {
		return evra[:i]
	}
	return evra
}

// file stores reports, several in one transaction: a commit waits for the disk.
func (s *Store) file(ctx context.Context) {
	for {
		var batch []*filing
		select {
		case <-ctx.Done():
			return
		case f := <-s.reports:
			batch = append(batch, f)
		}
		for len(batch) < maxFiling {
			select {
			case f := <-s.reports:
				batch = append(batch, f)
				continue
			default:
			}
			break
		}
		s.fileBatch(ctx, batch)
	}
}

func (s *Store) fileBatch(ctx context.Context, batch []*filing) {
	fresh := map[item]int64{}
	errs := make([]error, len(batch))
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		clear(fresh)
		clear(errs)
		if err := s.number(tx, batch, fresh); err != nil {
			return err
		}
		rows := map[string]map[string]int64{}
		for i, f := range batch {
			if errs[i] = s.base(tx, f); errs[i] != nil {
				if fault.Code(errs[i]) == "internal" {
					return errs[i]
				}
				continue
			}
			if err := s.apply(tx, f, fresh, rows); err != nil {
				return err
			}
		}
		if len(rows) == 0 {
			return nil
		}
		text, err := json.Marshal(rows)
		if err != nil {
			return err
		}
		_, err = tx.Exec(`INSERT INTO fleet_has (host, item, since, until) SELECT CAST(value->>'h' AS BIGINT), CAST(value->>'i' AS BIGINT), CAST($1 AS BIGINT), 0 FROM json_each($2) WHERE 1 = 1 ON CONFLICT (host, item, since) DO UPDATE SET until = 0`, tx.Now(), string(text))
		return err
	})
	if err == nil {
		if len(s.items)+len(fresh) > maxItems {
			clear(s.items)
		}
		maps.Copy(s.items, fresh)
		s.mu.Lock()
		for i, f := range batch {
			if m := s.members[f.host]; m != nil && errs[i] == nil {
				m.digest = f.digest
			}
		}
		s.mu.Unlock()
	}
	for i, f := range batch {
		if err != nil {
			errs[i] = err
		}
		f.result <- errs[i]
	}
}

// base fails when a report does not follow what is stored.
func (s *Store) base(tx *db.Tx, f *filing) error {
	var had, state string
	if err := tx.QueryRow("SELECT inventory, state FROM fleet_host WHERE id = $1", f.host).Scan(&had, &state); err != nil {
		return err
	}
	if state != wire.Accepted {
		return fault.Denied("host_revoked", "the host is not let in any more")
	}
	if !f.full && f.base != had {
		return fault.Conflict("report_base", "the report follows %.20q, and the server knows %.20q", f.base, had).Fix("the agent sends everything")
	}
	return nil
}

// number finds the numbers of all items of a batch, and gives new ones theirs.
func (s *Store) number(tx *db.Tx, batch []*filing, fresh map[item]int64) error {
	var unknown []item
	seen := map[item]bool{}
	for _, f := range batch {
		for _, it := range f.add {
			if _, ok := s.items[it]; !ok && !seen[it] {
				seen[it] = true
				unknown = append(unknown, it)
			}
		}
	}
	for part := range slices.Chunk(unknown, 5000) {
		text, err := json.Marshal(indexed(part))
		if err != nil {
			return err
		}
		err = tx.Each(func(scan func(...any) error) error {
			var id int64
			var it item
			err := scan(&id, &it.kind, &it.key, &it.value)
			fresh[it] = id
			return err
		}, "SELECT i.id, i.kind, i.key, i.value FROM json_each($1) j JOIN fleet_item i ON i.kind = j.value->>'k' AND i.key = j.value->>'n' AND i.value = j.value->>'v'", string(text))
		if err != nil {
			return err
		}
		next, err := tx.NextID("fleet_item")
		if err != nil {
			return err
		}
		rows := map[string]any{}
		for _, it := range part {
			if _, ok := fresh[it]; !ok {
				fresh[it] = next
				rows[strconv.Itoa(len(rows))] = map[string]any{"i": next, "k": it.kind, "n": it.key, "v": it.value, "b": base(it.key)}
				next++
			}
		}
		if len(rows) == 0 {
			continue
		}
		if text, err = json.Marshal(rows); err != nil {
			return err
		}
		if _, err := tx.Exec("INSERT INTO fleet_item (id, kind, key, value, base) SELECT CAST(value->>'i' AS BIGINT), value->>'k', value->>'n', value->>'v', value->>'b' FROM json_each($1)", string(text)); err != nil {
			return err
		}
	}
	return nil
}

func indexed(items []item) map[string]map[string]string {
	out := map[string]map[string]string{}
	for i, it := range items {
		out[strconv.Itoa(i)] = map[string]string{"k": it.kind, "n": it.key, "v": it.value}
	}
	return out
}

// apply closes what is gone or changed of a host, and adds to rows what is new.
func (s *Store) apply(tx *db.Tx, f *filing, fresh map[item]int64, rows map[string]map[string]int64) error {
	id := func(it item) int64 {
		if n, ok := s.items[it]; ok {
			return n
		}
		return fresh[it]
	}
	have := map[int64]bool{}
	keyed := map[[2]string]int64{} // of kinds that have one value for a key
	err := tx.Each(func(scan func(...any) error) error {
		var n int64
		var it item
		if err := scan(&n, &it.kind, &it.key); err != nil {
			return err
		}
		have[n] = true
		if it.kind != kindPackage {
			keyed[[2]string{it.kind, it.key}] = n
		}
		return nil
	}, "SELECT i.id, i.kind, i.key FROM fleet_has h JOIN fleet_item i ON i.id = h.item WHERE h.host = $1 AND h.until = 0", f.host)
	if err != nil {
		return err
	}
	want := map[int64]bool{}
	ended := map[int64]bool{}
	for _, it := range f.add {
		n := id(it)
		want[n] = true
		if had := keyed[[2]string{it.kind, it.key}]; it.kind != kindPackage && had != 0 && had != n {
			ended[had] = true
		}
	}
	for _, it := range f.gone {
		if it.kind != kindPackage {
			if had := keyed[[2]string{it.kind, it.key}]; had != 0 {
				ended[had] = true
			}
			continue
		}
		var n int64
		if err := tx.QueryRow("SELECT id FROM fleet_item WHERE kind = $1 AND key = $2 AND value = $3", it.kind, it.key, it.value).Scan(&n); err != nil && !db.NoRow(err) {
			return err
		}
		ended[n] = true
	}
	for n := range have {
		if f.full && !want[n] {
			ended[n] = true
		}
	}
	gone := map[string]map[string]int64{}
	for n := range ended {
		if have[n] && !want[n] {
			gone[strconv.Itoa(len(gone))] = map[string]int64{"i": n}
		}
	}
	if len(gone) > 0 {
		text, err := json.Marshal(gone)
		if err != nil {
			return err
		}
		if _, err := tx.Exec("UPDATE fleet_has SET until = $1 WHERE host = $2 AND until = 0 AND item IN (SELECT CAST(value->>'i' AS BIGINT) FROM json_each($3))", tx.Now(), f.host, string(text)); err != nil {
			return err
		}
	}
	for n := range want {
		if !have[n] {
			rows[strconv.Itoa(len(rows))] = map[string]int64{"h": f.host, "i": n}
		}
	}
	_, err = tx.Exec("UPDATE fleet_host SET inventory = $1, reported = $2 WHERE id = $3", f.digest, tx.Now(), f.host)
	return err
}

// Fact is one thing that a host tells of itself.
type Fact struct {
	Kind  string    `json:"kind"`
	Key   string    `json:"key"`
	Value string    `json:"value"`
	Since time.Time `json:"since"`
	Until time.Time `json:"until,omitzero"`
}

// FactFilter chooses facts.
type FactFilter struct {
	Kind    string // fact, package, service, port, mine; "" for all
	Search  string // a part of the key
	At      int64  // as of a time in microseconds; 0 is now
	History bool   // also what is no more, the newest change first
	Limit   int
}

// Facts are what a host tells of itself, by kind and key.
func (s *Store) Facts(ctx context.Context, name string, f FactFilter) ([]Fact, error) {
	if err := auth.Need(ctx, "host.read", name); err != nil {
		return nil, err
	}
	if f.Limit <= 0 || f.Limit > 20_000 {
		f.Limit = 20_000
	}
	out := []Fact{}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		_, id, err := find(tx, name)
		if err != nil {
			return err
		}
		where, order := "h.until = 0", "i.kind, i.key, i.value"
		switch {
		case f.History:
			where, order = "1 = 1", "CASE WHEN h.until > h.since THEN h.until ELSE h.since END DESC, i.kind, i.key"
		case f.At != 0:
			where = fmt.Sprintf("h.since <= %d AND (h.until = 0 OR h.until > %[1]d)", f.At)
		}
		return tx.Each(func(scan func(...any) error) error {
			var x Fact
			var since, until int64
			err := scan(&x.Kind, &x.Key, &x.Value, &since, &until)
			x.Since, x.Until = db.Time(since), db.Time(until)
			out = append(out, x)
			return err
		}, "SELECT i.kind, i.key, i.value, h.since, h.until FROM fleet_has h JOIN fleet_item i ON i.id = h.item WHERE h.host = $1 AND ($2 = '' OR i.kind = $2) AND ($3 = '' OR LOWER(i.key) LIKE $4 ESCAPE '\\') AND "+where+" ORDER BY "+order+" LIMIT $5",
			id, f.Kind, f.Search, "%"+db.Like(strings.ToLower(f.Search)), f.Limit)
	})
	return out, err
}

// Count is how many hosts have a value.
type Count struct {
	Value string `json:"value"`
	Hosts int64  `json:"hosts"`
}

// Values are the values of a fact and how many hosts have each, the most first.
func (s *Store) Values(ctx context.Context, kind, key string, limit int) ([]Count, error) {
	if err := auth.Need(ctx, "host.read", "*"); err != nil {
		return nil, err
	}
	out := []Count{}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var c Count
			err := scan(&c.Value, &c.Hosts)
			out = append(out, c)
			return err
		}, "SELECT i.value, COUNT(*) FROM fleet_item i JOIN fleet_has h ON h.item = i.id AND h.until = 0 JOIN fleet_host f ON f.id = h.host AND f.state = 'accepted' WHERE i.kind = $1 AND i.key = $2 GROUP BY i.value ORDER BY COUNT(*) DESC, i.value LIMIT $3", kind, key, limit)
	})
	return out, err
}
