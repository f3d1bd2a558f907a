package accounts

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
)

// What Salt writes into a crontab: both must go on to understand what the other left there.
const (
	cronTag  = "# Lines below here are managed by Salt, do not edit"
	cronID   = "SALT_CRON_IDENTIFIER:"
	cronNoID = "NO ID SET"
	cronOff  = "#DISABLED#"
)

// cronJob is a managed line: five times or a special one like @daily, and a command.
type cronJob struct {
	Times   [5]string // minute, hour, day of month, month, day of week
	Special string
	Cmd     string
	Comment *string
	ID      *string
	Off     bool
}

// cronEnv is a managed setting of a variable.
type cronEnv struct{ Name, Value string }

// crontab is a user's table. What is not managed stands before the mark.
type crontab struct {
	Pre  []string
	Jobs []cronJob // with times and special ones, each kind in its order
	Env  []cronEnv
}

func (h *host) cron() []module.Function {
	user := module.Need("user", module.Str)
	cmd := module.Need("cmd", module.Str)
	id := module.May("identifier", module.Any, nil)
	off := module.May("commented", module.Bool, false)
	comment := module.May("comment", module.Str, nil)
	var times, anyTimes []module.Param
	for _, n := range timeNames {
		times, anyTimes = append(times, module.Need(n, module.Any)), append(anyTimes, module.May(n, module.Any, nil))
	}
	list := func(name string) module.Function {
		return module.Reads(name, "Gives the crontab of a user in parts: what is managed, and the lines before.\n\nsalt '*' "+name+" root", func(ctx context.Context, c *module.Call) (any, error) {
			t, err := h.readTab(ctx, c.Str("user"))
			if err != nil {
				return nil, err
			}
			return t.describe(), nil
		}, user)
	}
	remove := func(name string) module.Function {
		return module.Tests(name, "Removes a job from the crontab of a user: removed or absent.\n\nsalt '*' "+name+" root /usr/local/weekly", h.rmJob(false), slices.Concat([]module.Param{user, cmd}, anyTimes, []module.Param{id})...)
	}
	return []module.Function{
		module.Reads("cron.raw_cron", "Gives the crontab of a user as it is.\n\nsalt '*' cron.raw_cron root", func(ctx context.Context, c *module.Call) (any, error) {
			s, err := h.rawTab(ctx, c.Str("user"))
			return module.Valid(s), err
		}, user),
		list("cron.list_tab"), list("cron.ls"),
		module.Reads("cron.get_entry", "Gives a managed job of a user, by identifier or command; false when there is none.\n\nsalt '*' cron.get_entry root identifier=task1", func(ctx context.Context, c *module.Call) (any, error) {
			t, err := h.readTab(ctx, c.Str("user"))
			if err != nil {
				return nil, err
			}
			for _, special := range []bool{false, true} {
				for _, j := range t.Jobs {
					if special == (j.Special != "") && (c.Has("identifier") && j.ID != nil && *j.ID == module.Text(c.Any("identifier")) || !c.Has("identifier") && c.Has("cmd") && j.Cmd == c.Str("cmd")) {
						return j.describe(), nil
					}
				}
			}
			return false, nil
		}, user, id, module.May("cmd", module.Str, nil)),
		module.Tests("cron.set_job", "Sets a job in the crontab of a user: new, updated or present.\n\nsalt '*' cron.set_job root '*' '*' '*' '*' 1 /usr/local/weekly", func(ctx context.Context, c *module.Call) (any, error) {
			j, err := jobArgs(c)
			if err != nil {
				return nil, err
			}
			random := [5]bool{}
			for i, n := range timeNames {
				if j.Times[i], err = timeArg(n, c.Any(n)); err != nil {
					return nil, err
				}
				random[i] = j.Times[i] == "random"
			}
			return h.setTab(ctx, c, j, random)
		}, slices.Concat([]module.Param{user}, times, []module.Param{cmd, off, comment, id})...),
		module.Tests("cron.set_special", "Sets a job with a special time like @daily in the crontab of a user.\n\nsalt '*' cron.set_special root @hourly 'echo foobar'", func(ctx context.Context, c *module.Call) (any, error) {
			j, err := jobArgs(c)
			if err != nil {
				return nil, err
			}
			if j.Special = c.Str("special"); !reSpecial.MatchString(j.Special) {
				return nil, fault.Invalid("bad_time", "%q is no special time of cron", j.Special).Fix("write it like @daily or @reboot")
			}
			return h.setTab(ctx, c, j, [5]bool{})
		}, user, module.Need("special", module.Str), cmd, off, comment, id),
		remove("cron.rm_job"), remove("cron.rm"),
		module.Tests("cron.rm_special", "Removes a job with a special time from the crontab of a user.\n\nsalt '*' cron.rm_special root /usr/bin/foo", h.rmJob(true), user, cmd, module.May("special", module.Str, nil), id),
		module.Tests("cron.set_env", "Sets a variable in the crontab of a user: new, updated or present.\n\nsalt '*' cron.set_env root MAILTO user@example.com", h.setEnv, user, module.Need("name", module.Str), module.May("value", module.Str, nil)),
		module.Tests("cron.rm_env", "Removes a variable from the crontab of a user.\n\nsalt '*' cron.rm_env root MAILTO", func(ctx context.Context, c *module.Call) (any, error) {
			return h.changeTab(ctx, c, func(t *crontab) (string, bool) {
				n := len(t.Env)
				t.Env = slices.DeleteFunc(t.Env, func(e cronEnv) bool { return e.Name == c.Str("name") })
				if len(t.Env) == n {
					return "absent", false
				}
				return "removed", true
			})
		}, user, module.Need("name", module.Str)),
		module.Tests("cron.write_cron_file", "Replaces the crontab of a user by a file.\n\nsalt '*' cron.write_cron_file root /tmp/new_cron", func(ctx context.Context, c *module.Call) (any, error) {
			s, err := module.ReadFile(h.path("", c.Str("path")))
			if err != nil || c.Test {
				return err == nil, err
			}
			err = h.writeTab(ctx, c.Str("user"), s)
			return err == nil, err
		}, user, module.Need("path", module.Str)),
	}
}

var timeNames = []string{"minute", "hour", "daymonth", "month", "dayweek"}

var (
	reSpecial = regexp.MustCompile(`^@[a-z]+$`)
	reTime    = regexp.MustCompile(`^[0-9A-Za-z*,/~-]+$`)
	reEnvName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	reEnvLine = regexp.MustCompile(`^\s*([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)$`)
)

// timeArg is a time of a job, "random" for one to be chosen.
func timeArg(name string, v any) (string, error) {
	s := strings.ToLower(strings.TrimSpace(module.Text(v)))
	if f, ok := v.(float64); ok && f == float64(int64(f)) {
		s = strconv.FormatInt(int64(f), 10)
	}
	if !reTime.MatchString(s) {
		return "", fault.Invalid("bad_time", "%q cannot be the %s of a cron job", s, name)
	}
	return s, nil
}

// jobArgs is what set_job and set_special have in common.
func jobArgs(c *module.Call) (cronJob, error) {
	j := cronJob{Cmd: c.Str("cmd"), Off: c.Bool("commented")}
	if j.Cmd == "" || strings.ContainsAny(j.Cmd, "\n\r\x00") {
		return j, fault.Invalid("bad_command", "the command of a cron job must be one line, not %q", j.Cmd)
	}
	if c.Has("comment") {
		s := strings.TrimRight(c.Str("comment"), "\n")
		j.Comment = &s
	}
	j.ID = idArg(c)
	for _, p := range []*string{j.Comment, j.ID} {
		if p != nil && strings.ContainsAny(*p, "\r\x00") || p != nil && p == j.ID && strings.Contains(*p, "\n") {
			return j, fault.Invalid("bad_comment", "%q cannot be the comment or identifier of a cron job", *p)
		}
	}
	return j, nil
}

// idArg is the identifier of a call; None and False are none.
func idArg(c *module.Call) *string {
	switch c.Any("identifier").(type) {
	case nil, bool:
		return nil
	}
	s := module.Text(c.Any("identifier"))
	return &s
}

func (j cronJob) describe() map[string]any {
	m := map[string]any{"cmd": module.Valid(j.Cmd), "comment": orNil(j.Comment), "identifier": orNil(j.ID), "commented": j.Off}
	if j.Special != "" {
		m["spec"] = j.Special
		return m
	}
	for i, n := range timeNames {
		m[n] = j.Times[i]
	}
	return m
}

func orNil(s *string) any {
	if s == nil {
		return nil
	}
	return module.Valid(*s)
}

func (t crontab) describe() map[string]any {
	pre, jobs, special, env := []string{}, []any{}, []any{}, []any{}
	for _, l := range t.Pre {
		pre = append(pre, module.Valid(l))
	}
	for _, j := range t.Jobs {
		if j.Special != "" {
			special = append(special, j.describe())
		} else {
			jobs = append(jobs, j.describe())
		}
	}
	for _, e := range t.Env {
		env = append(env, map[string]any{"name": module.Valid(e.Name), "value": module.Valid(e.Value)})
	}
	return map[string]any{"pre": pre, "crons": jobs, "special": special, "env": env}
}

// parseTab reads a crontab. Lines after the mark that are nothing known are kept before it.
func parseTab(text string) crontab {
	var t crontab
	managed := false
	var held []string // comments that belong to the next job
	for _, l := range module.Lines(text) {
		l = strings.TrimRight(l, "\r")
		if l == cronTag {
			managed = true
			continue
		}
		if !managed {
			t.Pre = append(t.Pre, l)
			continue
		}
		body, off := strings.CutPrefix(l, cronOff)
		switch j, ok := parseJob(body); {
		case strings.TrimSpace(l) == "":
		case ok:
			j.Off = off
			j.Comment, j.ID = parseComments(held)
			held = nil
			t.Jobs = append(t.Jobs, j)
		case !off && strings.HasPrefix(l, "#"):
			held = append(held, l)
		case !off && reEnvLine.MatchString(l):
			m := reEnvLine.FindStringSubmatch(l)
			v := m[2]
			if v == `""` {
				v = ""
			}
			t.Env = append(t.Env, cronEnv{m[1], v})
		default:
			t.Pre = append(append(t.Pre, held...), l)
			held = nil
		}
	}
	t.Pre = append(t.Pre, held...)
	return t
}

// parseJob reads a job without the lines above it.
func parseJob(l string) (cronJob, bool) {
	l = strings.TrimLeft(l, " \t")
	next := func() string {
		i := strings.IndexAny(l, " \t")
		if i < 0 {
			i = len(l)
		}
		w := l[:i]
		l = strings.TrimLeft(l[i:], " \t")
		return w
	}
	var j cronJob
	if strings.HasPrefix(l, "@") {
		j.Special = next()
		j.Cmd = l
		return j, j.Cmd != "" && reSpecial.MatchString(j.Special)
	}
	for i := range j.Times {
		if j.Times[i] = next(); !reTime.MatchString(j.Times[i]) {
			return j, false
		}
	}
	j.Cmd = l
	return j, j.Cmd != ""
}

// parseComments takes the identifier out of the comments above a job.
func parseComments(lines []string) (comment, id *string) {
	var text []string
	for _, l := range lines {
		l = strings.TrimPrefix(strings.TrimPrefix(l, "#"), " ")
		if before, after, ok := strings.Cut(l, cronID); ok {
			after = strings.TrimSpace(after)
			id = &after
			if l = strings.TrimRight(before, " "); l == "" {
				continue
			}
		}
		text = append(text, l)
	}
	if len(text) > 0 {
		s := strings.TrimRight(strings.Join(text, "\n"), " \n") // an identifier that is written after a blank line would take its place
		comment = &s
	}
	return comment, id
}

// String writes the table as Salt does: what is not managed, the mark, variables, jobs.
func (t crontab) String() string {
	var b strings.Builder
	for _, l := range t.Pre {
		b.WriteString(l + "\n")
	}
	b.WriteString(cronTag + "\n")
	for _, e := range t.Env {
		if e.Value == "" {
			e.Value = `""`
		}
		b.WriteString(e.Name + "=" + e.Value + "\n")
	}
	for _, special := range []bool{false, true} {
		for _, j := range t.Jobs {
			if special == (j.Special != "") {
				b.WriteString(j.lines())
			}
		}
	}
	return b.String()
}

func (j cronJob) lines() string {
	var b strings.Builder
	if j.Comment != nil || j.ID != nil {
		b.WriteString("#")
		if j.Comment != nil && *j.Comment != "" {
			b.WriteString(" " + strings.ReplaceAll(*j.Comment, "\n", "\n# "))
		}
		if j.ID != nil {
			b.WriteString(" " + cronID + *j.ID)
		}
		b.WriteString("\n")
	}
	if j.Off {
		b.WriteString(cronOff)
	}
	when := j.Special
	if when == "" {
		when = strings.Join(j.Times[:], " ")
	}
	b.WriteString(when + " " + j.Cmd + "\n")
	return b.String()
}

// fits tells whether a job is the one that a command and an identifier name. A job that has no
// identifier yet is found by its command.
func (j cronJob) fits(cmd string, id *string) bool {
	if id == nil {
		return j.Cmd == cmd
	}
	if j.ID == nil || *j.ID == "" || *j.ID == cronNoID {
		return j.Cmd == cmd
	}
	return *j.ID == *id
}

func sameText(a, b *string) bool {
	return orNil(a) == orNil(b)
}

// setTab sets a job, with a time chosen at random where random says so and it has none yet.
func (h *host) setTab(ctx context.Context, c *module.Call, j cronJob, random [5]bool) (any, error) {
	choose := func(have *cronJob) error {
		low, size := [5]int{0, 0, 1, 1, 0}, [5]int{60, 24, 28, 12, 7}
		for i := range random {
			switch {
			case !random[i]:
			case have != nil:
				j.Times[i] = have.Times[i]
			default:
				n, err := h.roll(size[i])
				if err != nil {
					return err
				}
				j.Times[i] = strconv.Itoa(low[i] + n)
			}
		}
		return nil
	}
	var failure error
	out, err := h.changeTab(ctx, c, func(t *crontab) (string, bool) {
		for i, have := range t.Jobs {
			if (have.Special != "") != (j.Special != "") || !have.fits(j.Cmd, j.ID) {
				continue
			}
			failure = choose(&have)
			if j.ID == nil {
				j.ID = have.ID
			}
			if !c.Has("comment") {
				j.Comment = have.Comment
			}
			if have.Times == j.Times && have.Special == j.Special && have.Cmd == j.Cmd && have.Off == j.Off && sameText(have.Comment, j.Comment) && sameText(have.ID, j.ID) {
				return "present", false
			}
			t.Jobs[i] = j
			return "updated", failure == nil
		}
		failure = choose(nil)
		t.Jobs = append(t.Jobs, j)
		return "new", failure == nil
	})
	return out, errors.Join(err, failure)
}

// rmJob makes a function that removes a job with times, or one with a special time.
func (h *host) rmJob(special bool) func(context.Context, *module.Call) (any, error) {
	return func(ctx context.Context, c *module.Call) (any, error) { return h.removeJob(ctx, c, special) }
}

func (h *host) removeJob(ctx context.Context, c *module.Call, special bool) (any, error) {
	id := idArg(c)
	var want [5]string
	for i, n := range timeNames {
		if c.Has(n) {
			var err error
			if want[i], err = timeArg(n, c.Any(n)); err != nil {
				return nil, err
			}
		}
	}
	return h.changeTab(ctx, c, func(t *crontab) (string, bool) {
		for i, j := range t.Jobs {
			if (j.Special != "") != special || !j.fits(c.Str("cmd"), id) || c.Has("special") && j.Special != c.Str("special") {
				continue
			}
			wrong := false
			for k := range want {
				wrong = wrong || want[k] != "" && want[k] != j.Times[k]
			}
			if wrong {
				continue
			}
			t.Jobs = slices.Delete(t.Jobs, i, i+1)
			return "removed", true
		}
		return "absent", false
	})
}

func (h *host) setEnv(ctx context.Context, c *module.Call) (any, error) {
	e := cronEnv{c.Str("name"), c.Str("value")}
	if !reEnvName.MatchString(e.Name) || strings.ContainsAny(e.Value, "\n\r\x00") {
		return nil, fault.Invalid("bad_variable", "%q cannot be set to %q in a crontab", e.Name, e.Value)
	}
	return h.changeTab(ctx, c, func(t *crontab) (string, bool) {
		for i := range t.Env {
			if t.Env[i].Name == e.Name {
				if t.Env[i].Value == e.Value {
					return "present", false
				}
				t.Env[i] = e
				return "updated", true
			}
		}
		t.Env = append(t.Env, e)
		return "new", true
	})
}

// changeTab writes a table back that change changed.
func (h *host) changeTab(ctx context.Context, c *module.Call, change func(*crontab) (string, bool)) (any, error) {
	h.tabs.Lock()
	defer h.tabs.Unlock()
	t, err := h.readTab(ctx, c.Str("user"))
	if err != nil {
		return nil, err
	}
	did, changed := change(&t)
	if !changed || c.Test {
		return did, nil
	}
	return did, h.writeTab(ctx, c.Str("user"), t.String())
}

func (h *host) readTab(ctx context.Context, user string) (crontab, error) {
	s, err := h.rawTab(ctx, user)
	return parseTab(s), err
}

// spool is the directory of the users' tables: cronie's, or below it Debian's.
func (h *host) spool() (string, error) {
	for _, d := range []string{"/var/spool/cron/crontabs", "/var/spool/cron"} {
		if p := h.path("", d); isDir(p) {
			return p, nil
		}
	}
	return "", fault.Unavailable("cron_missing", "there is no cron on this host").Fix("install cronie")
}

// rawTab is a user's table, "" when there is none. It is read where crontab(1) keeps it, which
// gives it byte for byte.
func (h *host) rawTab(ctx context.Context, user string) (string, error) {
	if err := checkName("user", user); err != nil {
		return "", err
	}
	dir, err := h.spool()
	if err != nil {
		return "", err
	}
	s, err := module.ReadIfThere(dir + "/" + user)
	if err != nil {
		return "", err
	}
	// Some crontab(1) put three lines of their own before each table.
	lines := module.Lines(s)
	if len(lines) >= 3 && strings.HasPrefix(lines[0], "# DO NOT EDIT THIS FILE") {
		s = strings.Join(lines[3:], "\n") + "\n"
	}
	return s, ctx.Err()
}

// writeTab gives a user a table: by crontab(1), which checks it and tells cron, or where there is
// no such program by replacing the file.
func (h *host) writeTab(ctx context.Context, name, text string) error {
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	if len(text) > module.MaxFile {
		return fault.TooLarge("file_too_large", "the crontab of %s would be larger than %d bytes", name, module.MaxFile)
	}
	if h.root == "/" {
		if _, err := os.Stat("/usr/bin/crontab"); err == nil {
			o, err := h.run(ctx, text, "crontab", "-u", name, "-")
			if err == nil && o.Code != 0 {
				err = failed(o, "crontab", "-u", name, "-")
			}
			return err
		}
	}
	u, ok, err := h.findUser("", name)
	if err != nil {
		return err
	}
	if !ok {
		return noUser(name)
	}
	dir, err := h.spool()
	if err != nil {
		return err
	}
	file := dir + "/" + name
	err = rewrite(file, text)
	if errors.Is(err, fs.ErrNotExist) {
		if err = durable.WriteFile(file, []byte(text), 0o600); err == nil {
			err = os.Chown(file, u.UID, u.GID)
		}
	}
	if err != nil {
		return fmt.Errorf("the crontab of %s: %w", name, err)
	}
	return nil
}
