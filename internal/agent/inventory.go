package agent

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
	"drover/internal/fleet/wire"
)

// Inventory is what is told of a host.
type Inventory struct {
	Items    map[string]map[string]string // by kind and key: facts, services, ports
	Packages []string                     // NEVRAs
}

// digest names an inventory.
func (v Inventory) digest() string {
	h := sha256.New()
	for _, kind := range slices.Sorted(maps.Keys(v.Items)) {
		for _, k := range slices.Sorted(maps.Keys(v.Items[kind])) {
			h.Write([]byte(kind + "\x00" + k + "\x00" + v.Items[kind][k] + "\n"))
		}
	}
	for _, p := range v.Packages {
		h.Write([]byte(p + "\n"))
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// since is what has changed from an older inventory.
func (v Inventory) since(old Inventory) wire.Report {
	r := wire.Report{Base: old.digest(), Digest: v.digest(), Set: map[string]map[string]string{}, Gone: map[string][]string{}}
	for kind, m := range v.Items {
		for k, x := range m {
			if had, ok := old.Items[kind][k]; !ok || had != x {
				if r.Set[kind] == nil {
					r.Set[kind] = map[string]string{}
				}
				r.Set[kind][k] = x
			}
		}
	}
	for kind, m := range old.Items {
		for k := range m {
			if _, ok := v.Items[kind][k]; !ok {
				r.Gone[kind] = append(r.Gone[kind], k)
			}
		}
	}
	had := map[string]bool{}
	for _, p := range old.Packages {
		had[p] = true
	}
	for _, p := range v.Packages {
		if !had[p] {
			r.Add = append(r.Add, p)
		}
		delete(had, p)
	}
	for p := range had {
		r.Remove = append(r.Remove, p)
	}
	return r
}

func (v Inventory) full() wire.Report {
	return wire.Report{Digest: v.digest(), Set: v.Items, Add: v.Packages}
}

// inventory reports when it is asked to, and from time to time.
func (a *Agent) inventory(ctx context.Context) {
	t := time.NewTimer(time.Hour)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-a.report:
			if err := module.Sleep(ctx, spread(min(a.spreadOver(), time.Minute))); err != nil {
				return
			}
		}
		next := a.reportEvery()
		if a.Connected() {
			if err := a.Report(ctx); err != nil && ctx.Err() == nil {
				a.log.Warn("the inventory was not reported; it is tried again", "err", err)
				next = min(next, 30*time.Second+spread(30*time.Second))
			}
		}
		t.Reset(next)
	}
}

func (a *Agent) reportEvery() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	d := time.Duration(min(max(a.welcome.Report, 30), 24*3600)) * time.Second
	return d - d/8 + spread(d/4)
}

// Report gathers the inventory and tells the server what of it has changed.
func (a *Agent) Report(ctx context.Context) error {
	if a.cfg.Collect == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	v, err := a.cfg.Collect(ctx)
	if err != nil {
		return err
	}
	slices.Sort(v.Packages)
	v.Packages = slices.Compact(v.Packages)
	a.mu.Lock()
	known := a.welcome.Inventory
	a.mu.Unlock()
	digest := v.digest()
	if digest == known && known != "" {
		return nil
	}
	r := v.full()
	if old, err := a.lastReport(); err == nil && known != "" && old.digest() == known {
		r = v.since(old)
	}
	err = a.send(ctx, r)
	if fault.Code(err) == "report_base" {
		err = a.send(ctx, v.full())
	}
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.welcome.Inventory = digest
	a.mu.Unlock()
	err = a.keepReport(v, digest)
	if a.cfg.Dir != "" {
		trim()
	}
	return err
}

func (a *Agent) send(ctx context.Context, r wire.Report) error {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if err := errors.Join(json.NewEncoder(z).Encode(r), z.Close()); err != nil {
		return err
	}
	resp, err := a.do(ctx, a.http, "POST", "/api/v1/agent/report", map[string][]string{"Content-Type": {"application/json"}, "Content-Encoding": {"gzip"}}, &b)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// lastReport is what was reported last, as it is kept on disk.
func (a *Agent) lastReport() (v Inventory, err error) {
	if a.cfg.Dir == "" {
		return v, fs.ErrNotExist
	}
	b, err := os.ReadFile(filepath.Join(a.cfg.Dir, "inventory.json.gz"))
	if err != nil {
		return v, err
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return v, err
	}
	return v, json.NewDecoder(z).Decode(&v)
}

func (a *Agent) keepReport(v Inventory, digest string) error {
	a.journal.mu.Lock()
	a.journal.inventory = digest
	a.journal.mu.Unlock()
	if a.cfg.Dir == "" {
		return nil
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if err := errors.Join(json.NewEncoder(z).Encode(v), z.Close()); err != nil {
		return err
	}
	return errors.Join(durable.WriteFile(filepath.Join(a.cfg.Dir, "inventory.json.gz"), b.Bytes(), 0o600), durable.WriteFile(filepath.Join(a.cfg.Dir, "inventory"), []byte(digest), 0o600))
}

// host is what functions get to know.
func (a *Agent) host() module.Host {
	h := a.cfg.Host
	h.Dir, h.ID, h.Version, h.Registry = a.cfg.Dir, a.cfg.Name, a.cfg.Version, a.cfg.Registry
	h.Refresh = a.Report
	h.Event = func(_ context.Context, tag string, data any) error {
		b, err := json.Marshal(data)
		if err != nil {
			return err
		}
		if len(b) > wire.MaxMessage/2 || len(tag) > 300 {
			return fault.TooLarge("event_large", "the event %.60q has %d bytes; at most %d", tag, len(b), wire.MaxMessage/2)
		}
		if !a.Connected() {
			return fault.Unavailable("server_away", "the event %.60q was not told: there is no connection to the server", tag)
		}
		a.say("event", wire.Event{Tag: tag, Data: b})
		return nil
	}
	h.Mine = func(ctx context.Context, target, function, form string) (any, error) {
		var out any
		err := a.call(ctx, a.http, "POST", "/api/v1/agent/mine", map[string]string{"target": target, "fun": function, "form": form}, &out)
		return out, err
	}
	h.Call = func(ctx context.Context, fun string, args []any, named map[string]any) (any, error) {
		v, _, err := a.invoke(ctx, fun, args, named)
		return v, err
	}
	return h
}

// invoke runs a function of this host for the agent itself or for another function.
func (a *Agent) invoke(ctx context.Context, fun string, args []any, named map[string]any) (v any, rc int, err error) {
	f, ok := a.cfg.Registry.Get(fun)
	if !ok {
		return nil, 0, fault.NotFound("function_unknown", "there is no function %.100s on this host", fun).Fix("see sys.list_functions")
	}
	if err := a.cfg.Policy().check(fun); err != nil {
		return nil, 0, err
	}
	h := a.host()
	c, err := module.Bind(&h, f, args, named, false)
	if err != nil {
		return nil, 0, err
	}
	v, err = safely(ctx, f, c)
	return v, c.RC, err
}
