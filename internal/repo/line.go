package repo

import (
	"context"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"drover/internal/auth"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
)

// Line is an order of channels that a change goes through: stream-10/dev, stream-10/test,
// stream-10/prod. Its parts are channels of tags and mirrors, whose repositories it keeps
// together: a host gets, and the gate checks, all of them as of one moment.
type Line struct {
	Name   string   `json:"name,omitempty"`
	Parts  []string `json:"parts" doc:"channels of tags and mirrors; the first stage follows them"`
	Stages []string `json:"stages" doc:"in the order in which a change goes through them"`
	Since  int64    `json:"since,omitempty"`
}

// channel is the channel of one of the line's stages.
func (l Line) channel(stage int) string { return l.Name + "/" + l.Stages[stage] }

// treeName is what the line calls a repository of one of its parts.
func treeName(part, tree string) string { return part + "." + tree }

var reStage = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)

// Bounds of a line.
const (
	maxParts  = 20
	maxStages = 10
)

// SetLine makes a line or changes it.
func (s *Store) SetLine(ctx context.Context, l Line) error {
	if err := auth.Need(ctx, "repo.line", l.Name); err != nil {
		return err
	}
	no := func(format string, args ...any) *fault.Error { return fault.Invalid("line", format, args...) }
	switch {
	case !reName.MatchString(l.Name):
		return no("%.100q is no name of a line", l.Name).Fix("use a-z 0-9 _ . + -, a letter or digit first")
	case len(l.Parts) == 0 || len(l.Parts) > maxParts:
		return no("a line has 1 to %d parts, not %d", maxParts, len(l.Parts)).Fix("name the channels of tags and mirrors that it is made of")
	case len(l.Stages) == 0 || len(l.Stages) > maxStages:
		return no("a line has 1 to %d stages, not %d", maxStages, len(l.Stages)).Fix("for example: --stage dev --stage test --stage prod")
	}
	for _, st := range l.Stages {
		if !reStage.MatchString(st) || st == "at" || st == "source" {
			return no("%.50q is no name of a stage", st).Fix("use a-z 0-9 -, a letter first; at and source are taken")
		}
	}
	for _, list := range [][]string{l.Parts, l.Stages} {
		if sorted := slices.Sorted(slices.Values(list)); len(slices.Compact(sorted)) != len(list) {
			return no("the line %s names a part or a stage twice", l.Name).Fix("name each once")
		}
	}
	return s.DB.Write(ctx, func(tx *db.Tx) error {
		for _, p := range l.Parts {
			if err := s.checkPart(tx, p); err != nil {
				return err
			}
		}
		had, err := lineAt(tx, l.Name, event.Now)
		if err != nil && fault.Code(err) != "line_unknown" {
			return err
		}
		l.Since = 0
		text, err := json.Marshal(l)
		if err != nil {
			return err
		}
		had.Since = 0
		if old, err := json.Marshal(had); err != nil || string(old) == string(text) {
			return err
		}
		ev, err := event.Append(tx, "line.set", "line/"+l.Name, l)
		if err != nil {
			return err
		}
		if _, err := tx.Exec("UPDATE repo_line SET until = $1 WHERE name = $2 AND until = 0", ev, l.Name); err != nil {
			return err
		}
		_, err = tx.Exec("INSERT INTO repo_line (name, config, since, until) VALUES ($1, $2, $3, 0)", l.Name, string(text), ev)
		return err
	})
}

// checkPart makes sure that a line may have a part: the channel of a tag or mirror.
func (s *Store) checkPart(tx *db.Tx, name string) error {
	if mirror, err := isMirror(tx, name); err != nil || mirror {
		return err
	}
	if _, err := s.Release.At(tx, name, event.Now); fault.Code(err) != "tag_unknown" {
		return err
	}
	return fault.NotFound("part_unknown", "%.100q is neither a tag nor a mirror", name).Fix("see `drover tag list` and `drover mirror list`")
}

// DropLine ends a line. Its channels stay where they are; nothing moves them any more but by
// hand.
func (s *Store) DropLine(ctx context.Context, name string) error {
	if err := auth.Need(ctx, "repo.line", name); err != nil {
		return err
	}
	return s.DB.Write(ctx, func(tx *db.Tx) error {
		if _, err := lineAt(tx, name, event.Now); err != nil {
			return err
		}
		ev, err := event.Append(tx, "line.drop", "line/"+name, map[string]any{})
		if err != nil {
			return err
		}
		_, err = tx.Exec("UPDATE repo_line SET until = $1 WHERE name = $2 AND until = 0", ev, name)
		return err
	})
}

const lineColumns = "config, since FROM repo_line"

func scanLine(scan func(...any) error) (l Line, err error) {
	var text string
	var since int64
	if err := scan(&text, &since); err != nil {
		return l, err
	}
	err = json.Unmarshal([]byte(text), &l)
	l.Since = since
	return l, err
}

func lineAt(tx *db.Tx, name string, at int64) (Line, error) {
	l, err := scanLine(tx.QueryRow("SELECT "+lineColumns+" WHERE name = $1 AND since <= $2 AND (until = 0 OR until > $2)", name, at).Scan)
	if db.NoRow(err) {
		return l, fault.NotFound("line_unknown", "there is no line %.100q", name).Fix("see `drover line list`")
	}
	return l, err
}

func lines(tx *db.Tx) ([]Line, error) {
	out := []Line{}
	err := tx.Each(func(scan func(...any) error) error {
		l, err := scanLine(scan)
		out = append(out, l)
		return err
	}, "SELECT "+lineColumns+" WHERE until = 0 ORDER BY name")
	return out, err
}

// Lines lists the lines.
func (s *Store) Lines(ctx context.Context) (out []Line, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error { out, err = lines(tx); return err })
	return out, err
}

// stageOf finds the line and the stage that a channel is.
func stageOf(tx *db.Tx, channel string) (l Line, stage int, err error) {
	name, st, ok := strings.Cut(channel, "/")
	no := fault.NotFound("stage_unknown", "the channel %.100q is no stage of a line", channel).Fix("see `drover line list`; other channels are moved by `drover channel set`")
	if !ok {
		return l, 0, no
	}
	if l, err = lineAt(tx, name, event.Now); err != nil {
		return l, 0, err
	}
	if stage = slices.Index(l.Stages, st); stage < 0 {
		return l, 0, no
	}
	return l, stage, nil
}

// follow moves the first stage of each line to what its parts hold now. It runs until ctx
// ends.
func (s *Store) follow(ctx context.Context) {
	warned := map[string]string{}
	for ctx.Err() == nil {
		changed := s.DB.Changed()
		ls, err := s.Lines(ctx)
		for _, l := range ls {
			err := s.followLine(ctx, l)
			if err == nil || ctx.Err() != nil {
				delete(warned, l.Name)
			} else if warned[l.Name] != err.Error() {
				warned[l.Name] = err.Error()
				s.Log.Error("the first stage of a line does not follow its parts", "line", l.Name, "err", err)
			}
		}
		if err != nil && ctx.Err() == nil {
			s.Log.Error("lines to follow", "err", err)
		}
		timer := time.NewTimer(pollTags)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// followLine looks first and writes only when there is something to move.
func (s *Store) followLine(ctx context.Context, l Line) error {
	due := false
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		sn, _, parts, err := s.compose(tx, l)
		if err != nil || len(parts) == 0 {
			return err
		}
		c, err := channelAt(tx, l.channel(0), event.Now)
		if err != nil && fault.Code(err) != "channel_unknown" {
			return err
		}
		frozen, err := freezeOf(tx, l.channel(0))
		due = c.Snapshot != sn.ID && frozen == nil
		return err
	})
	if err != nil || !due {
		return err
	}
	var moved []*tree
	err = s.DB.Write(ctx, func(tx *db.Tx) error {
		l, err := lineAt(tx, l.Name, event.Now)
		if err != nil {
			return err
		}
		if frozen, err := freezeOf(tx, l.channel(0)); err != nil || frozen != nil {
			return err
		}
		sn, ts, parts, err := s.compose(tx, l)
		if err != nil {
			return err
		}
		had, err := channelAt(tx, l.channel(0), event.Now)
		if err != nil && fault.Code(err) != "channel_unknown" || had.Snapshot == sn.ID {
			return err
		}
		ev, err := event.Append(tx, "channel.follow", "channel/"+l.channel(0), map[string]any{"snapshot": sn.ID, "was": had.Snapshot, "parts": parts})
		if err != nil {
			return err
		}
		if err := s.keepSnapshot(tx, sn, ts, parts, ev); err != nil {
			return err
		}
		moved = ts
		return point(tx, l.channel(0), sn.ID, ev)
	})
	if err != nil {
		return err
	}
	// Somebody will ask what the next stage would get; the answer is quick then.
	return s.gate.Warm(ctx, gateTrees(moved))
}

// compose puts the present states of a line's parts together. A part that has no state yet is
// left out.
func (s *Store) compose(tx *db.Tx, l Line) (sn Snapshot, ts []*tree, parts map[string]string, err error) {
	parts = map[string]string{}
	sn = Snapshot{Kind: "line", Source: l.Name}
	for _, p := range l.Parts {
		c, err := channelAt(tx, p, event.Now)
		if fault.Code(err) == "channel_unknown" {
			continue
		}
		if err != nil {
			return sn, nil, nil, err
		}
		of, err := s.treesOfSnapshot(tx, c.Snapshot)
		if err != nil {
			return sn, nil, nil, err
		}
		for _, t := range of {
			t.name = treeName(p, t.name)
			ts = append(ts, t)
		}
		parts[p] = c.Snapshot
		sn.Cause = max(sn.Cause, c.Since)
	}
	sealSnapshot(&sn, ts)
	return sn, ts, parts, nil
}

// sealSnapshot counts the packages of a snapshot, of a line's also by whose keys they are signed, and
// gives it its id.
func sealSnapshot(sn *Snapshot, ts []*tree) {
	slices.SortFunc(ts, func(a, b *tree) int { return strings.Compare(a.name, b.name) })
	sn.Packages = 0
	keys := map[string]bool{}
	for _, t := range ts {
		n, _ := t.packages()
		sn.Packages += n
		if t.key != "" {
			keys[t.key] = true
		}
	}
	if sn.Kind == "line" {
		sn.Key = strings.Join(slices.Sorted(maps.Keys(keys)), " ")
	}
	sn.ID = snapshotID(sn.Kind, sn.Source, ts)
}
