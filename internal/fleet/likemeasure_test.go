package fleet

import (
	"encoding/json"
	"fmt"
	"strconv"
	"testing"
	"time"

	"drover/internal/db"
	"drover/internal/db/dbtest"
)

func TestLikeMeasure(t *testing.T) {
	d := dbtest.SQLite(t, Schema())
	ctx := t.Context()
	id := 0
	for host := range 300 {
		_ = host
		rows := map[string]any{}
		for i := range 400 {
			id++
			rows[strconv.Itoa(i)] = map[string]any{"i": id, "k": "fact", "n": fmt.Sprintf("k%d:%d", i, host%5), "v": fmt.Sprint(id), "b": fmt.Sprintf("k%d", i)}
		}
		text, _ := json.Marshal(rows)
		if err := d.Write(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec("INSERT INTO fleet_item (id, kind, key, value, base) SELECT CAST(value->>'i' AS BIGINT), value->>'k', value->>'n', value->>'v', value->>'b' FROM json_each($1)", string(text))
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	for _, q := range []string{
		"SELECT id, key, value FROM fleet_item WHERE kind = $1 AND ($2 = '' OR base = $2 OR base LIKE $3 ESCAPE '\\')",
		"SELECT id, key, value FROM fleet_item WHERE kind = $1 AND base IN (WITH RECURSIVE b(x) AS (SELECT CAST($2 AS TEXT) UNION ALL SELECT (SELECT base FROM fleet_item WHERE kind = $1 AND base > b.x ORDER BY base LIMIT 1) FROM b WHERE b.x IS NOT NULL) SELECT x FROM b WHERE x = $2 OR x LIKE $3 ESCAPE '\\')",
	} {
		for _, top := range []string{"a", "k1", "k399", "z"} {
		began := time.Now()
		n := 0
		for range 5 {
			if err := d.Read(ctx, func(tx *db.Tx) error {
				return tx.Each(func(scan func(...any) error) error { n++; var a int64; var k, v string; return scan(&a, &k, &v) }, q, "fact", top, db.Like(top+":"))
			}); err != nil {
				t.Fatal(err)
			}
		}
		t.Log(top, n, time.Since(began)/5)
		}
	}
}
