package agent

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

// Scheduled is something that an agent does by itself from time to time, with or without a server.
type Scheduled struct {
	Function string         `yaml:"function"`
	Args     []any          `yaml:"args"`
	Kwargs   map[string]any `yaml:"kwargs"`
	// Seconds, Minutes, Hours and Days are how long it is between two; they add up.
	Seconds int `yaml:"seconds"`
	Minutes int `yaml:"minutes"`
	Hours   int `yaml:"hours"`
	Days    int `yaml:"days"`
	// Cron is when, instead: minute, hour, day of the month, month, day of the week.
	Cron string `yaml:"cron"`
	// Splay is how many seconds at the most each is put off, at random.
	Splay int `yaml:"splay"`
	// Start runs it at the start of the agent too.
	Start bool `yaml:"run_on_start"`
	// Off keeps it from running.
	Off bool `yaml:"disabled"`
}

// Check says what is wrong with a schedule.
func (s Scheduled) Check(name string) error {
	if s.Function == "" {
		return fault.Invalid("schedule", "the schedule %s names no function", name)
	}
	if s.Seconds < 0 || s.Minutes < 0 || s.Hours < 0 || s.Days < 0 || s.Splay < 0 || s.Days > 3650 {
		return fault.Invalid("schedule", "the schedule %s has a time below zero or beyond ten years", name)
	}
	if s.Cron != "" {
		if _, err := parseCron(s.Cron); err != nil {
			return fault.Invalid("schedule", "the schedule %s: %q is no time", name, s.Cron).Wrap(err).Fix("give five fields: minute hour day month weekday, such as 30 3 * * 1-5")
		}
		return nil
	}
	if s.every() < time.Second {
		return fault.Invalid("schedule", "the schedule %s says not how often", name).Fix("give seconds, minutes, hours, days or cron")
	}
	return nil
}

func (s Scheduled) every() time.Duration {
	return time.Duration(s.Seconds)*time.Second + time.Duration(s.Minutes)*time.Minute + time.Duration(s.Hours)*time.Hour + time.Duration(s.Days)*24*time.Hour
}

// next is when it is to run after a time.
func (s Scheduled) next(t time.Time) time.Time {
	if s.Cron == "" {
		return t.Add(s.every())
	}
	c, err := parseCron(s.Cron)
	if err != nil {
		return time.Time{}
	}
	return c.next(t)
}

// schedule runs what is scheduled until ctx ends. One of a name runs at a time; what is due while
// it runs is left out.
func (a *Agent) schedule(ctx context.Context) {
	for _, name := range slices.Sorted(maps.Keys(a.cfg.Schedule)) {
		s := a.cfg.Schedule[name]
		if err := s.Check(name); err != nil {
			a.log.Error("a schedule is not run", "err", err)
			continue
		}
		if s.Off {
			continue
		}
		a.work.Go(func() {
			if s.Start {
				a.scheduled(ctx, name, s)
			}
			for {
				at := s.next(time.Now())
				if at.IsZero() || module.Sleep(ctx, time.Until(at)+spread(time.Duration(s.Splay)*time.Second)) != nil {
					return
				}
				a.scheduled(ctx, name, s)
			}
		})
	}
}

// scheduled runs one, and tells what came of it.
func (a *Agent) scheduled(ctx context.Context, name string, s Scheduled) {
	began := time.Now()
	data := map[string]any{"schedule": name, "fun": s.Function, "fun_args": s.Args, "success": false, "retcode": 1}
	// As a job's, it goes on while the agent is stopped: it may be dnf, which puts a new agent in.
	v, rc, err := a.invoke(context.WithoutCancel(ctx), s.Function, s.Args, s.Kwargs)
	if err == nil {
		data["return"], data["retcode"], data["success"] = v, rc, rc == 0
	} else {
		data["error"] = err.Error()
		a.log.Warn("what was scheduled failed", "schedule", name, "err", err)
	}
	data["took"] = time.Since(began).Seconds()
	a.event(ctx, "salt/schedule/"+a.cfg.Name+"/"+name, data)
}

// event tells the server something, if it is there.
func (a *Agent) event(ctx context.Context, tag string, data map[string]any) {
	if err := a.host().Event(ctx, tag, data); err != nil {
		a.log.Info("an event is not told", "tag", tag, "err", err)
	}
}

// cron is a time as crontab(5) writes it: bits of the minutes, hours, days, months and weekdays.
type cron struct {
	minute, hour, day, month, weekday uint64
	anyDay, anyWeekday                bool
}

func parseCron(text string) (c cron, err error) {
	f := strings.Fields(text)
	if len(f) != 5 {
		return c, fault.Invalid("cron", "%d fields instead of five", len(f))
	}
	for i, x := range []struct {
		to       *uint64
		from, up int
	}{{&c.minute, 0, 59}, {&c.hour, 0, 23}, {&c.day, 1, 31}, {&c.month, 1, 12}, {&c.weekday, 0, 7}} {
		if *x.to, err = cronField(f[i], x.from, x.up); err != nil {
			return c, err
		}
	}
	if c.weekday&(1<<7) != 0 { // Sunday is both
		c.weekday |= 1
	}
	c.anyDay, c.anyWeekday = f[2] == "*", f[4] == "*"
	return c, nil
}

func cronField(text string, from, to int) (bits uint64, err error) {
	for _, part := range strings.Split(text, ",") {
		span, every, stepped := strings.Cut(part, "/")
		lo, hi, step := from, to, 1
		if stepped {
			if step, err = strconv.Atoi(every); err != nil || step < 1 {
				return 0, fault.Invalid("cron", "%q is no step", part)
			}
		}
		if span != "*" {
			a, b, ranged := strings.Cut(span, "-")
			if lo, err = strconv.Atoi(a); err != nil {
				return 0, fault.Invalid("cron", "%q is no number", part)
			}
			hi = lo
			if ranged {
				if hi, err = strconv.Atoi(b); err != nil {
					return 0, fault.Invalid("cron", "%q is no number", part)
				}
			} else if stepped {
				hi = to
			}
		}
		if lo < from || hi > to || lo > hi {
			return 0, fault.Invalid("cron", "%q is not between %d and %d", part, from, to)
		}
		for ; lo <= hi; lo += step {
			bits |= 1 << lo
		}
	}
	return bits, nil
}

// next is the next such time, in the host's zone; zero when there is none within five years.
func (c cron) next(after time.Time) time.Time {
	t := after.Truncate(time.Minute).Add(time.Minute)
	end := after.AddDate(5, 0, 0)
	for t.Before(end) {
		switch {
		case c.month&(1<<int(t.Month())) == 0:
			t = time.Date(t.Year(), t.Month()+1, 1, 0, 0, 0, 0, t.Location())
		case !c.dayFits(t):
			t = time.Date(t.Year(), t.Month(), t.Day()+1, 0, 0, 0, 0, t.Location())
		case c.hour&(1<<t.Hour()) == 0:
			n := time.Date(t.Year(), t.Month(), t.Day(), t.Hour()+1, 0, 0, 0, t.Location())
			if !n.After(t) { // the hour that summer time repeats
				n = t.Add(time.Hour)
			}
			t = n
		case c.minute&(1<<t.Minute()) == 0:
			t = t.Add(time.Minute)
		default:
			return t
		}
	}
	return time.Time{}
}

// dayFits: when both days are given, either is enough.
func (c cron) dayFits(t time.Time) bool {
	day, week := c.day&(1<<t.Day()) != 0, c.weekday&(1<<int(t.Weekday())) != 0
	switch {
	case c.anyDay:
		return week
	case c.anyWeekday:
		return day
	}
	return day || week
}
