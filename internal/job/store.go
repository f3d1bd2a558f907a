package job

import (
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"drover/internal/auth"
	"drover/internal/db"
	"drover/internal/fault"
	"drover/internal/job/wire"
)

//go:embed migrations
var migrations embed.FS

// Schema is the tables of jobs, their verdicts and the rules of who may.
func Schema() db.Schema { return db.Schema{Name: "job", FS: migrations} }

const jobColumns = "id, jid, author, state, why, spec, total, counts, created, ended, event"

func scanJob(scan func(...any) error) (j Job, err error) {
	var spec, counts string
	var created, ended int64
	if err = scan(&j.num, &j.ID, &j.Author, &j.State, &j.Why, &spec, &j.Total, &counts, &created, &ended, &j.Event); err != nil {
		return j, err
	}
	j.Created, j.Ended = db.Time(created), db.Time(ended)
	if err := json.Unmarshal([]byte(spec), &j.Spec); err != nil {
		return j, err
	}
	return j, json.Unmarshal([]byte(counts), &j.Counts)
}

// Filter chooses jobs.
type Filter struct {
	Host   string // that were for this host
	Fun    string // of this function; a trailing dot takes all of a module
	Author string
	State  string
	Search string // a part of the target, the arguments or the reason
	Before string // with an older id
	Limit  int    // 0 means 100
}

// where is a filter as a condition with its eight parameters.
func (s *Store) where(tx *db.Tx, f Filter) (cond string, args []any, err error) {
	var host int64
	if f.Host != "" {
		if host, err = s.fleet.Number(tx, f.Host); err != nil {
			return "", nil, err
		}
	}
	fun := "-"
	if strings.HasSuffix(f.Fun, ".") {
		fun = db.Like(f.Fun)
	}
	cond = "($1 = 0 OR id IN (SELECT job FROM job_host WHERE host = $1)) AND ($2 = '' OR fun = $2 OR fun LIKE $3 ESCAPE '\\') AND ($4 = '' OR author = $4) AND ($5 = '' OR state = $5) AND ($6 = '' OR spec LIKE $7 ESCAPE '\\') AND ($8 = '' OR jid < $8)"
	return cond, []any{host, f.Fun, fun, f.Author, f.State, f.Search, "%" + db.Like(f.Search), f.Before}, nil
}

// List is jobs, the newest first.
func (s *Store) List(ctx context.Context, f Filter) ([]Job, error) {
	if err := auth.Need(ctx, "host.read", "*"); err != nil {
		return nil, err
	}
	if f.Limit <= 0 || f.Limit > 1000 {
		f.Limit = 100
	}
	out := []Job{}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		where, args, err := s.where(tx, f)
		if err != nil {
			return err
		}
		return tx.Each(func(scan func(...any) error) error {
			j, err := scanJob(scan)
			out = append(out, j)
			return err
		}, "SELECT "+jobColumns+" FROM job_job WHERE "+where+" ORDER BY jid DESC LIMIT $9", append(args, f.Limit)...)
	})
	for i := range out {
		s.fresh(&out[i])
	}
	return out, err
}

// Get finds a job.
func (s *Store) Get(ctx context.Context, id string) (Job, error) {
	if err := auth.Need(ctx, "host.read", id); err != nil {
		return Job{}, err
	}
	var j Job
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		j, err = getJob(tx, id)
		return err
	})
	s.fresh(&j)
	return j, err
}

func getJob(tx *db.Tx, id string) (Job, error) {
	j, err := scanJob(tx.QueryRow("SELECT "+jobColumns+" FROM job_job WHERE jid = $1", id).Scan)
	if db.NoRow(err) {
		return j, fault.NotFound("job_unknown", "there is no job %.40q", id).Fix("see `drover job list`; old jobs are forgotten")
	}
	return j, err
}

// hostsOf are the numbers of a job's hosts, in the order of their turns.
func hostsOf(tx *db.Tx, j Job) (ids []int64, err error) {
	var text string
	if err := tx.QueryRow("SELECT hosts FROM job_job WHERE id = $1", j.num).Scan(&text); err != nil {
		return nil, err
	}
	return ids, json.Unmarshal([]byte(text), &ids)
}

// Verdicts are what became of a job on each of its hosts, by name.
func (s *Store) Verdicts(ctx context.Context, id string) ([]Verdict, error) {
	j, err := s.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	out := []Verdict{}
	have := map[int64]bool{}
	var hosts []int64
	err = s.db.Read(ctx, func(tx *db.Tx) (err error) {
		if hosts, err = hostsOf(tx, j); err != nil {
			return err
		}
		return tx.Each(func(scan func(...any) error) error {
			v, err := scanVerdict(scan)
			out = append(out, v)
			have[v.host] = true
			return err
		}, "SELECT "+verdictColumns+" FROM job_host WHERE job = $1 ORDER BY name", j.num)
	})
	if err != nil {
		return nil, err
	}
	return append(out, s.underway(id, hosts, have)...), nil
}

const verdictColumns = "host, name, state, rc, result, code, error, step, began, took, output, size, at"

func scanVerdict(scan func(...any) error) (v Verdict, err error) {
	var result string
	var began, took, at int64
	err = scan(&v.host, &v.Host, &v.State, &v.RC, &result, &v.Code, &v.Error, &v.Step, &began, &took, &v.Blob, &v.Size, &at)
	if result != "" {
		v.Return = json.RawMessage(result)
	}
	v.Began, v.Took, v.At = db.Time(began), float64(took)/1e6, db.Time(at)
	if v.State == wire.Offline {
		v.Since, v.Began = v.Began, time.Time{}
	}
	return v, err
}

// row is a verdict on its way into the database.
type row struct {
	job int64
	*Verdict
}

func (r row) compare(o row) int {
	return cmp.Or(cmp.Compare(r.job, o.job), cmp.Compare(r.host, o.host))
}

func (r row) began() int64 {
	t := r.Began
	if r.State == wire.Offline {
		t = r.Since
	}
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// putVerdicts writes verdicts, some in a statement: taken apart from JSON they take SQLite three
// times as long, and one by one each takes PostgreSQL a round trip. It puts rows into another order.
func putVerdicts(tx *db.Tx, rows []row) error {
	const columns = 14
	// In the order of the tables, and of two verdicts on a host the later: a statement may have one.
	slices.Reverse(rows)
	slices.SortStableFunc(rows, row.compare)
	rows = slices.CompactFunc(rows, func(a, b row) bool { return a.compare(b) == 0 })
	for _, size := range []int{30, 1} {
		if len(rows) < size {
			continue
		}
		var q strings.Builder
		q.WriteString("INSERT INTO job_host (job, host, name, state, rc, result, code, error, step, began, took, output, size, at) VALUES ")
		for i := range size * columns {
			switch {
			case i == 0:
				q.WriteString("(")
			case i%columns == 0:
				q.WriteString("), (")
			default:
				q.WriteString(", ")
			}
			q.WriteString("$" + strconv.Itoa(i+1))
		}
		q.WriteString(") ON CONFLICT (job, host) DO UPDATE SET state = excluded.state, rc = excluded.rc, result = excluded.result, code = excluded.code, error = excluded.error, step = excluded.step, began = excluded.began, took = excluded.took, output = excluded.output, size = excluded.size, at = excluded.at")
		args := make([]any, 0, size*columns)
		for ; len(rows) >= size; rows = rows[size:] {
			args = args[:0]
			for _, r := range rows[:size] {
				args = append(args, r.job, r.host, r.Host, r.State, r.RC, string(r.Return), r.Code, r.Error, r.Step, r.began(), int64(r.Took*1e6), r.Blob, r.Size, tx.Now())
			}
			if _, err := tx.Exec(q.String(), args...); err != nil {
				return err
			}
		}
	}
	return nil
}

// keepJobs is how long jobs and their verdicts are kept.
const keepJobs = 90 * 24 * time.Hour

// forget removes jobs that ended long ago, some at a time, and keeps the newest.
func (s *Store) forget(ctx context.Context) error {
	for {
		var n int64
		err := s.db.Write(ctx, func(tx *db.Tx) error {
			ids, err := db.Column[int64](tx, "SELECT id FROM job_job WHERE ended > 0 AND ended < $1 AND id < (SELECT MAX(id) FROM job_job) ORDER BY id LIMIT 100", tx.Now()-keepJobs.Microseconds())
			if err != nil {
				return err
			}
			for _, id := range ids {
				if _, err := tx.Exec("DELETE FROM job_host WHERE job = $1", id); err != nil {
					return err
				}
				if _, err := tx.Exec("DELETE FROM job_job WHERE id = $1", id); err != nil {
					return err
				}
			}
			n = int64(len(ids))
			return nil
		})
		if err != nil || n == 0 {
			return err
		}
	}
}

// total counts the jobs that a filter lets through, whatever its Before says.
func (s *Store) total(ctx context.Context, f Filter) (n int64, err error) {
	f.Before = ""
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		where, args, err := s.where(tx, f)
		if err != nil {
			return err
		}
		return tx.QueryRow("SELECT COUNT(*) FROM job_job WHERE "+where, args...).Scan(&n)
	})
	return n, err
}

// stored tells whether a job that does not run any more was for a host.
func (s *Store) stored(ctx context.Context, jid string, host int64) bool {
	var n int
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow("SELECT COUNT(*) FROM job_host h JOIN job_job j ON j.id = h.job WHERE j.jid = $1 AND h.host = $2", jid, host).Scan(&n)
	})
	return err == nil && n > 0
}
