package grains

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"drover/internal/agent/module/bustest"
	"drover/internal/fault"
)

func dialer(address string) func(context.Context) (*dbus.Conn, error) {
	return func(ctx context.Context) (*dbus.Conn, error) { return dbus.Connect(address, dbus.WithContext(ctx)) }
}

// unit is a line of what systemd's manager lists.
type unit struct {
	Name, Description, Load, Active, Sub, Following string
	Path                                            dbus.ObjectPath
	JobID                                           uint32
	JobType                                         string
	JobPath                                         dbus.ObjectPath
}

// systemd answers as systemd's manager does.
type fakeManager struct{}

func (fakeManager) ListUnitsByPatterns(states, patterns []string) ([]unit, *dbus.Error) {
	if len(states) != 0 || !slices.Equal(patterns, []string{"*.service"}) {
		return nil, dbus.MakeFailedError(errors.New("not what was expected"))
	}
	mk := func(name, load, active, sub string) unit {
		return unit{name, name, load, active, sub, "", "/a", 0, "", "/"}
	}
	return []unit{mk("sshd.service", "loaded", "active", "running"), mk("getty@tty1.service", "loaded", "active", "running"), mk("dnf-makecache.service", "loaded", "inactive", "dead"),
		mk("kdump.service", "loaded", "failed", "failed"), mk("network.service", "not-found", "inactive", "dead"), mk("systemd-sysctl.service", "loaded", "active", "exited")}, nil
}

type properties struct{}

func (properties) Get(_, name string) (dbus.Variant, *dbus.Error) {
	return dbus.MakeVariant("+PAM +SELINUX -APPARMOR " + name), nil
}

func TestServices(t *testing.T) {
	dial := dialer(bustest.Start(t))
	if _, err := services(t.Context(), dial); fault.Code(err) != "systemd_silent" {
		t.Errorf("a bus without systemd: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const path = "/org/freedesktop/systemd1"
	if err := errors.Join(conn.Export(fakeManager{}, path, "org.freedesktop.systemd1.Manager"), conn.Export(properties{}, path, "org.freedesktop.DBus.Properties")); err != nil {
		t.Fatal(err)
	}
	if r, err := conn.RequestName("org.freedesktop.systemd1", 0); err != nil || r != dbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("%v, %v", r, err)
	}
	got, err := services(t.Context(), dial)
	want := map[string]string{"sshd": "running", "getty@tty1": "running", "dnf-makecache": "dead", "kdump": "failed", "systemd-sysctl": "exited"}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v: %s", err, d)
	}
	if s, err := systemdFeatures(t.Context(), dial); err != nil || s != "+PAM +SELINUX -APPARMOR Features" {
		t.Errorf("%q, %v", s, err)
	}
}

func TestServicesWithoutBus(t *testing.T) {
	if _, err := services(t.Context(), dialer("unix:path="+filepath.Join(t.TempDir(), "none"))); fault.Code(err) != "dbus_missing" {
		t.Errorf("%v", err)
	}
	// One that takes the connection and says nothing does not hold the caller.
	socket := filepath.Join(t.TempDir(), "silent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := services(ctx, dialer("unix:path="+socket)); err == nil || time.Since(start) > 4*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

func TestPortsOfThisMachine(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	u, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	got, err := Ports(t.Context(), "/")
	if err != nil {
		t.Fatal(err)
	}
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	for proto, a := range map[string]netip.AddrPort{"tcp": netip.MustParseAddrPort(l.Addr().String()), "udp": netip.MustParseAddrPort(u.LocalAddr().String())} {
		want := Port{proto, a.Addr(), a.Port(), strings.TrimSpace(string(comm))}
		if !slices.Contains(got, want) {
			t.Errorf("%v is not among %v", want, got)
		}
	}
}
