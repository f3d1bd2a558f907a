package system

import (
	"context"
	"errors"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

// busConn is a connection to the system bus, and to systemd over another one when it is wanted.
type busConn struct {
	*godbus.Conn
	dial func() (*godbus.Conn, error)
}

// systemBus connects to the bus of the running system.
func systemBus(ctx context.Context) (*busConn, error) {
	return dialBus(func() (*godbus.Conn, error) { return godbus.ConnectSystemBus(godbus.WithContext(ctx)) })
}

func dialBus(dial func() (*godbus.Conn, error)) (*busConn, error) {
	c, err := dial()
	if err != nil {
		return nil, module.NoBus(err)
	}
	return &busConn{c, dial}, nil
}

// systemd opens systemd's manager. The caller closes what it gets.
func (m *machine) systemd(ctx context.Context) (*dbus.Conn, error) {
	b, err := m.bus(ctx)
	if err != nil {
		return nil, err
	}
	// The first connection only showed that there is a bus; go-systemd wants two of its own.
	if err := b.Close(); err != nil {
		return nil, module.NoBus(err)
	}
	c, err := dbus.NewConnection(b.dial)
	if err != nil {
		return nil, module.NoBus(err)
	}
	return c, nil
}

// call calls one method of a service of the system, and stores its results.
func (m *machine) call(ctx context.Context, dest, path, method string, args []any, out ...any) error {
	b, err := m.bus(ctx)
	if err != nil {
		return err
	}
	err = b.Object(dest, godbus.ObjectPath(path)).CallWithContext(ctx, method, 0, args...).Store(out...)
	if cerr := b.Close(); err == nil && cerr != nil {
		err = cerr
	}
	return dbusFault(dest, err)
}

// dbusFault names what went wrong on the bus.
func dbusFault(dest string, err error) error {
	if err == nil {
		return nil
	}
	var e godbus.Error
	if !errors.As(err, &e) {
		return fault.Unavailable("dbus_failed", "%s does not answer on the system bus", dest).Wrap(err)
	}
	switch e.Name {
	case "org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner", "org.freedesktop.DBus.Error.Spawn.ServiceNotFound":
		return fault.Unavailable("dbus_service_missing", "%s is not on the system bus", dest).Wrap(err).Fix("start it; systemd's own services need systemd as init")
	case "org.freedesktop.DBus.Error.AccessDenied", "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired":
		return fault.Denied("dbus_denied", "%s does not let the agent do this", dest).Wrap(err)
	case "org.freedesktop.systemd1.NoSuchUnit", "org.freedesktop.systemd1.LoadFailed":
		return fault.NotFound("unit_missing", "systemd has no such unit").Wrap(err)
	case "org.freedesktop.systemd1.UnitMasked":
		return fault.Conflict("unit_masked", "the unit is masked").Wrap(err).Fix("unmask it, or pass unmask=True")
	case "org.freedesktop.DBus.Error.FileNotFound":
		return fault.NotFound("unit_missing", "systemd has no such unit file").Wrap(err)
	}
	return fault.Conflict("dbus_refused", "%s refuses", dest).Wrap(err)
}

// absent tells whether a call failed only since its service or the bus is not there.
func absent(err error) bool {
	code := fault.Code(err)
	return code == "dbus_missing" || code == "dbus_service_missing"
}
