package system

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"drover/internal/agent/module"
	"drover/internal/agent/module/bustest"
	"drover/internal/fault"
)

// call binds and runs a function of a machine, as the agent does.
func call(t *testing.T, m *machine, name string, args []any, named map[string]any) (any, error) {
	t.Helper()
	return callIn(t, m, false, name, args, named)
}

func callIn(t *testing.T, m *machine, test bool, name string, args []any, named map[string]any) (any, error) {
	t.Helper()
	r := module.NewRegistry(m.functions())
	f, ok := r.Get(name)
	if !ok {
		t.Fatalf("there is no function %s", name)
	}
	c, err := module.Bind(&module.Host{Registry: r}, f, args, named, test)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return f.Run(ctx, c)
}

// must runs a function that must not fail.
func must(t *testing.T, m *machine, name string, args ...any) any {
	t.Helper()
	v, err := call(t, m, name, args, nil)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}

func onBus(t *testing.T, m *machine, address string) {
	m.bus = func(ctx context.Context) (*busConn, error) {
		return dialBus(func() (*godbus.Conn, error) { return godbus.Connect(address, godbus.WithContext(ctx)) })
	}
}

// fakeSystemd answers as systemd's manager does, for a few units.
type fakeSystemd struct {
	conn  *godbus.Conn
	mu    sync.Mutex
	units map[string]map[string]any // properties
	files map[string]string         // states
	calls []string
	job   uint32
}

func (f *fakeSystemd) said(words ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, strings.Join(words, " "))
}

func (f *fakeSystemd) take() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := strings.Join(f.calls, "; ")
	f.calls = nil
	return s
}

func (f *fakeSystemd) run(verb, unit, active string) (godbus.ObjectPath, *godbus.Error) {
	f.said(verb, unit)
	f.mu.Lock()
	defer f.mu.Unlock()
	u, ok := f.units[unit]
	if !ok {
		return "", godbus.NewError("org.freedesktop.systemd1.NoSuchUnit", []any{"Unit " + unit + " not found."})
	}
	if f.files[unit] == "masked" {
		return "", godbus.NewError("org.freedesktop.systemd1.UnitMasked", []any{"Unit " + unit + " is masked."})
	}
	f.job++
	path := godbus.ObjectPath("/org/freedesktop/systemd1/job/1")
	result := "done"
	if unit == "broken.service" && verb != "stop" {
		result, active = "failed", "failed"
	}
	u["ActiveState"] = active
	id := f.job
	go func() {
		time.Sleep(20 * time.Millisecond) // the answer goes first, as systemd's does
		_ = f.conn.Emit("/org/freedesktop/systemd1", systemd1+".Manager.JobRemoved", id, path, unit, result)
	}()
	return path, nil
}

func (f *fakeSystemd) StartUnit(unit, _ string) (godbus.ObjectPath, *godbus.Error) {
	return f.run("start", unit, "active")
}
func (f *fakeSystemd) StopUnit(unit, _ string) (godbus.ObjectPath, *godbus.Error) {
	return f.run("stop", unit, "inactive")
}
func (f *fakeSystemd) RestartUnit(unit, _ string) (godbus.ObjectPath, *godbus.Error) {
	return f.run("restart", unit, "active")
}
func (f *fakeSystemd) ReloadUnit(unit, _ string) (godbus.ObjectPath, *godbus.Error) {
	return f.run("reload", unit, "active")
}
func (f *fakeSystemd) ReloadOrRestartUnit(unit, _ string) (godbus.ObjectPath, *godbus.Error) {
	return f.run("reload-or-restart", unit, "active")
}
func (f *fakeSystemd) Subscribe() *godbus.Error { return nil }
func (f *fakeSystemd) Reload() *godbus.Error {
	f.said("daemon-reload")
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, u := range f.units {
		u["NeedDaemonReload"] = false
	}
	return nil
}

type change struct{ Type, File, Target string }

func (f *fakeSystemd) set(verb, state string, names []string) ([]change, *godbus.Error) {
	f.said(append([]string{verb}, names...)...)
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []change
	for _, n := range names {
		if f.files[n] == "" {
			return nil, godbus.NewError("org.freedesktop.DBus.Error.FileNotFound", []any{"Unit file " + n + " does not exist."})
		}
		if f.files[n] != state {
			out = append(out, change{"symlink", "/etc/systemd/system/" + n, ""})
		}
		f.files[n] = state
	}
	return out, nil
}

func (f *fakeSystemd) EnableUnitFiles(names []string, _, _ bool) (bool, []change, *godbus.Error) {
	c, err := f.set("enable", "enabled", names)
	return true, c, err
}
func (f *fakeSystemd) DisableUnitFiles(names []string, _ bool) ([]change, *godbus.Error) {
	return f.set("disable", "disabled", names)
}
func (f *fakeSystemd) MaskUnitFiles(names []string, runtime, _ bool) ([]change, *godbus.Error) {
	if runtime {
		return f.set("mask --runtime", "masked-runtime", names)
	}
	return f.set("mask", "masked", names)
}
func (f *fakeSystemd) UnmaskUnitFiles(names []string, runtime bool) ([]change, *godbus.Error) {
	f.mu.Lock()
	masked := f.files[names[0]]
	f.mu.Unlock()
	if want := map[bool]string{true: "masked-runtime", false: "masked"}[runtime]; masked != want {
		return nil, nil
	}
	return f.set("unmask", "disabled", names)
}
func (f *fakeSystemd) GetUnitFileState(name string) (string, *godbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.files[name] == "" {
		return "", godbus.NewError("org.freedesktop.DBus.Error.FileNotFound", []any{"No such file or directory"})
	}
	return f.files[name], nil
}

type unitFile struct{ Path, State string }

func (f *fakeSystemd) ListUnitFiles() ([]unitFile, *godbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []unitFile
	for n, s := range f.files {
		out = append(out, unitFile{"/usr/lib/systemd/system/" + n, s})
	}
	return out, nil
}

func (f *fakeSystemd) ListUnits() ([]dbus.UnitStatus, *godbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []dbus.UnitStatus
	for n, u := range f.units {
		s := dbus.UnitStatus{Name: n, LoadState: u["LoadState"].(string), ActiveState: u["ActiveState"].(string), SubState: "dead", Path: "/x", JobPath: "/"}
		if s.ActiveState == "active" {
			s.SubState = "running"
		}
		out = append(out, s)
	}
	return out, nil
}

func (f *fakeSystemd) StartPlain() {}

// unitProps is org.freedesktop.DBus.Properties below the units.
type unitProps struct{ f *fakeSystemd }

func (p unitProps) unit(msg godbus.Message) map[string]any {
	path, _ := msg.Headers[godbus.FieldPath].Value().(godbus.ObjectPath)
	for n, u := range p.f.units {
		if strings.HasSuffix(string(path), "/"+dbus.PathBusEscape(n)) {
			return u
		}
	}
	return map[string]any{"LoadState": "not-found", "ActiveState": "inactive", "NeedDaemonReload": false}
}

func (p unitProps) Get(msg godbus.Message, _, name string) (godbus.Variant, *godbus.Error) {
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	v, ok := p.unit(msg)[name]
	if !ok {
		return godbus.Variant{}, godbus.NewError("org.freedesktop.DBus.Error.UnknownProperty", nil)
	}
	return godbus.MakeVariant(v), nil
}

func (p unitProps) GetAll(msg godbus.Message, _ string) (map[string]godbus.Variant, *godbus.Error) {
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	out := map[string]godbus.Variant{}
	for k, v := range p.unit(msg) {
		out[k] = godbus.MakeVariant(v)
	}
	return out, nil
}

// exec is a row of ExecStart, a(sasbttttuii).
type execRow struct {
	Path       string
	Argv       []string
	Ignore     bool
	A, B, C, D uint64
	PID        uint32
	Code, Stat int32
}

func newFakeSystemd(t *testing.T, address string) *fakeSystemd {
	t.Helper()
	conn, err := godbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	unit := func(load, active string) map[string]any {
		return map[string]any{"LoadState": load, "ActiveState": active, "NeedDaemonReload": false, "Requires": []string{"basic.target"}, "TasksMax": ^uint64(0), "Id": "x",
			"ExecStart": []execRow{{Path: "/usr/sbin/sshd", Argv: []string{"/usr/sbin/sshd", "-D"}, PID: 12}}}
	}
	f := &fakeSystemd{conn: conn, units: map[string]map[string]any{"sshd.service": unit("loaded", "inactive"), "broken.service": unit("loaded", "inactive"),
		"slow.service": unit("loaded", "activating"), "ghost.service": unit("not-found", "inactive"), "cron.timer": unit("loaded", "active")},
		files: map[string]string{"sshd.service": "disabled", "broken.service": "static", "cron.timer": "enabled", "getty@.service": "disabled"}}
	for _, e := range []error{
		conn.Export(f, "/org/freedesktop/systemd1", systemd1+".Manager"),
		conn.ExportSubtree(unitProps{f}, "/org/freedesktop/systemd1/unit", "org.freedesktop.DBus.Properties"),
	} {
		if e != nil {
			t.Fatal(e)
		}
	}
	if r, err := conn.RequestName(systemd1, 0); err != nil || r != godbus.RequestNameReplyPrimaryOwner {
		t.Fatal(r, err)
	}
	return f
}

func TestServices(t *testing.T) {
	address := bustest.Start(t)
	f := newFakeSystemd(t, address)
	m := testMachine(t)
	onBus(t, m, address)
	m.run = func(_ context.Context, argv ...string) (output, error) {
		return output{Out: "bad line 3 of broken.conf\n"}, nil // journalctl
	}
	steps := []struct {
		fn    string
		args  []any
		named map[string]any
		want  any
		calls string
	}{
		{"service.status", []any{"sshd"}, nil, false, ""},
		{"service.start", []any{"sshd"}, nil, true, "start sshd.service"},
		{"service.status", []any{"sshd.service"}, nil, true, ""},
		{"service.status", []any{"nothing"}, nil, false, ""},
		{"service.available", []any{"sshd"}, nil, true, ""},
		{"service.available", []any{"nothing"}, nil, false, ""},
		{"service.missing", []any{"nothing"}, nil, true, ""},
		{"service.available", []any{"getty@"}, nil, true, ""},
		{"service.enabled", []any{"sshd"}, nil, false, ""},
		{"service.disabled", []any{"sshd"}, nil, true, ""},
		{"service.enable", []any{"sshd"}, nil, true, "enable sshd.service; daemon-reload"},
		{"service.enabled", []any{"sshd"}, nil, true, ""},
		{"service.enabled", []any{"nothing"}, nil, false, ""},
		{"service.disable", []any{"sshd"}, nil, true, "disable sshd.service; daemon-reload"},
		{"service.restart", []any{"sshd"}, nil, true, "restart sshd.service"},
		{"service.reload", []any{"sshd"}, map[string]any{"no_block": true}, true, "reload sshd.service"},
		{"service.force_reload", []any{"sshd"}, nil, true, "reload-or-restart sshd.service"},
		{"service.stop", []any{"sshd"}, nil, true, "stop sshd.service"},
		{"service.mask", []any{"sshd"}, nil, true, "mask sshd.service; daemon-reload"},
		{"service.masked", []any{"sshd"}, nil, true, ""},
		{"service.masked", []any{"sshd"}, map[string]any{"runtime": true}, false, ""},
		{"service.start", []any{"sshd"}, map[string]any{"unmask": true}, true, "unmask sshd.service; daemon-reload; start sshd.service"},
		{"service.mask_runtime", []any{"sshd"}, nil, true, "mask --runtime sshd.service; daemon-reload"},
		{"service.masked", []any{"sshd"}, map[string]any{"runtime": true}, true, ""},
		{"service.unmask_", []any{"sshd"}, map[string]any{"runtime": true}, true, "unmask sshd.service; daemon-reload"},
		{"service.get_all", nil, nil, []string{"broken", "cron.timer", "getty@", "sshd"}, ""},
		{"service.get_enabled", nil, nil, []string{"cron.timer"}, ""},
		{"service.get_disabled", nil, nil, []string{"getty@", "sshd"}, ""},
		{"service.get_static", nil, nil, []string{"broken"}, ""},
		{"service.get_running", nil, nil, []string{"cron.timer", "sshd"}, ""},
		{"service.status", []any{"s*"}, nil, map[string]any{"sshd": true, "slow": false}, ""},
		{"service.status", []any{"slow"}, map[string]any{"wait": 0.1}, false, ""},
		{"service.systemctl_reload", nil, nil, true, "daemon-reload"},
		{"service.execs", nil, nil, map[string]any{
			"sshd":   map[string]any{"path": "/usr/sbin/sshd", "argv[]": "/usr/sbin/sshd -D", "ignore_errors": "no", "start_time": "0", "stop_time": "0", "pid": "12", "code": "0", "status": "0"},
			"broken": map[string]any{"path": "/usr/sbin/sshd", "argv[]": "/usr/sbin/sshd -D", "ignore_errors": "no", "start_time": "0", "stop_time": "0", "pid": "12", "code": "0", "status": "0"}}, ""},
	}
	for _, s := range steps {
		got, err := call(t, m, s.fn, s.args, s.named)
		if err != nil {
			t.Errorf("%s %v: %v", s.fn, s.args, err)
		}
		equal(t, s.fn, s.want, got)
		if calls := f.take(); calls != s.calls {
			t.Errorf("%s %v asked systemd to %q, want %q", s.fn, s.args, calls, s.calls)
		}
	}

	if _, err := call(t, m, "service.start", []any{"broken"}, nil); fault.Code(err) != "service_failed" || !strings.Contains(err.Error(), "bad line 3") {
		t.Errorf("a service that fails: %v", err)
	}
	if _, err := call(t, m, "service.start", []any{"nothing"}, nil); fault.Code(err) != "unit_missing" {
		t.Errorf("a service that is not there: %v", err)
	}
	for _, bad := range []string{"--now", "", "../x", "a\nb"} {
		if _, err := call(t, m, "service.stop", []any{bad}, nil); fault.Code(err) != "bad_name" {
			t.Errorf("the name %q: %v", bad, err)
		}
	}
	f.take()
	if v, err := callIn(t, m, true, "service.stop", []any{"sshd"}, nil); v != any(true) || err != nil || f.take() != "" {
		t.Errorf("test mode: %v, %v", v, err)
	}
	f.mu.Lock()
	f.units["sshd.service"]["NeedDaemonReload"] = true
	f.mu.Unlock()
	must(t, m, "service.restart", "sshd")
	if calls := f.take(); calls != "daemon-reload; restart sshd.service" {
		t.Errorf("after a change of the unit's file: %q", calls)
	}
	show := must(t, m, "service.show", "sshd").(map[string]any)
	if show["ActiveState"] != "active" || show["TasksMax"] != "infinity" || show["ExecStart"].(map[string]any)["path"] != "/usr/sbin/sshd" {
		t.Errorf("service.show: %v", show)
	}
}

// A job that never ends lets go when the call is canceled.
func TestJobsEndWithTheCall(t *testing.T) {
	address := bustest.Start(t)
	f := newFakeSystemd(t, address)
	m := testMachine(t)
	onBus(t, m, address)
	f.conn.Close() // nothing answers any more
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	r := module.NewRegistry(m.functions())
	fn, _ := r.Get("service.start")
	c, err := module.Bind(&module.Host{}, fn, []any{"sshd"}, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := fn.Run(ctx, c); err == nil || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

func TestWithoutABus(t *testing.T) {
	m := testMachine(t)
	onBus(t, m, "unix:path=/nonexistent/bus")
	for _, fn := range []string{"service.start", "service.status", "service.enabled", "service.show", "service.available"} {
		if _, err := call(t, m, fn, []any{"sshd"}, nil); fault.Code(err) != "dbus_missing" {
			t.Errorf("%s: %v", fn, err)
		}
	}
	for _, fn := range []string{"service.get_all", "service.get_running", "service.systemctl_reload", "system.reboot", "system.halt"} {
		if _, err := call(t, m, fn, nil, nil); fault.Code(err) != "dbus_missing" {
			t.Errorf("%s: %v", fn, err)
		}
	}
	// A bus on which systemd is not.
	onBus(t, m, bustest.Start(t))
	if _, err := call(t, m, "service.start", []any{"sshd"}, nil); fault.Code(err) != "dbus_service_missing" {
		t.Errorf("a bus without systemd: %v", err)
	}
}

// fakeLogin answers for logind, timedated, localed and hostnamed.
type fakeLogin struct {
	mu    sync.Mutex
	calls []string
}

func (f *fakeLogin) note(s ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, strings.Join(s, " "))
}
func (f *fakeLogin) take() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := strings.Join(f.calls, "; ")
	f.calls = nil
	return s
}
func (f *fakeLogin) ScheduleShutdown(kind string, at uint64) *godbus.Error {
	f.note("shutdown", kind, time.UnixMicro(int64(at)).UTC().Format("15:04:05"))
	return nil
}
func (f *fakeLogin) CancelScheduledShutdown() (bool, *godbus.Error) { return true, nil }
func (f *fakeLogin) SetTimezone(z string, _ bool) *godbus.Error     { f.note("zone", z); return nil }
func (f *fakeLogin) SetLocalRTC(local, _, _ bool) *godbus.Error {
	f.note("rtc", module.Text(local))
	return nil
}
func (f *fakeLogin) SetTime(us int64, _, _ bool) *godbus.Error {
	f.note("time", time.UnixMicro(us).UTC().Format("2006-01-02 15:04:05"))
	return nil
}
func (f *fakeLogin) SetLocale(l []string, _ bool) *godbus.Error {
	f.note(append([]string{"locale"}, l...)...)
	return nil
}
func (f *fakeLogin) SetStaticHostname(n string, _ bool) *godbus.Error { f.note("host", n); return nil }
func (f *fakeLogin) SetPrettyHostname(n string, _ bool) *godbus.Error { f.note("desc", n); return nil }

func TestServicesOfSystemd(t *testing.T) {
	address := bustest.Start(t)
	conn, err := godbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	f := &fakeLogin{}
	for _, n := range []string{"login1", "timedate1", "locale1", "hostname1"} {
		iface := "org.freedesktop." + n
		if n == "login1" {
			iface += ".Manager"
		}
		if err := conn.Export(f, godbus.ObjectPath("/org/freedesktop/"+n), iface); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.RequestName("org.freedesktop."+n, 0); err != nil {
			t.Fatal(err)
		}
	}
	m := testMachine(t)
	onBus(t, m, address)
	write(t, m, zoneinfo+"/Europe/Prague", "TZif2 prague")
	write(t, m, "/etc/locale.conf", "# mine\nLANG=\"C\"\nLC_TIME=de_DE.UTF-8\n")
	for _, s := range []struct {
		fn    string
		args  []any
		named map[string]any
		want  string
	}{
		{"system.reboot", nil, nil, "shutdown reboot 12:00:03"},
		{"system.reboot", []any{"+5"}, nil, "shutdown reboot 12:05:00"},
		{"system.reboot", []any{10}, nil, "shutdown reboot 12:10:00"},
		{"system.shutdown", []any{"11:59"}, nil, "shutdown poweroff 11:59:00"},
		{"system.halt", nil, nil, "shutdown halt 12:00:03"},
		{"system.poweroff", nil, nil, "shutdown poweroff 12:00:03"},
		{"timezone.set_zone", []any{"Europe/Prague"}, nil, "zone Europe/Prague"},
		{"timezone.set_hwclock", []any{"localtime"}, nil, "rtc True"},
		{"system.set_system_time", []any{"11:31:15 AM"}, nil, "time 2026-03-28 11:31:15"},
		{"system.set_system_date", []any{"2026-04-01"}, nil, "time 2026-04-01 12:00:00"},
		{"system.set_system_date_time", nil, map[string]any{"years": 2027, "hours": 4}, "time 2027-03-28 04:00:00"},
		{"locale.set_locale", []any{"en_US.UTF-8"}, nil, "locale LANG=en_US.UTF-8 LC_TIME=de_DE.UTF-8"},
		{"system.set_computer_name", []any{"web1.example.com"}, nil, "host web1.example.com"},
		{"system.set_computer_desc", []any{"the web"}, nil, "desc the web"},
	} {
		if _, err := call(t, m, s.fn, s.args, s.named); err != nil {
			t.Errorf("%s: %v", s.fn, err)
		}
		if got := f.take(); got != s.want {
			t.Errorf("%s %v: %q, want %q", s.fn, s.args, got, s.want)
		}
	}
	if _, err := call(t, m, "system.reboot", []any{"tomorrow"}, nil); fault.Code(err) != "bad_time" {
		t.Errorf("a time that is none: %v", err)
	}
}
