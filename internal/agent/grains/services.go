package grains

import (
	"context"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

// busDeadline is how long systemd may take to answer.
const busDeadline = 5 * time.Second

// systemBus connects to the system bus of the host.
func systemBus(ctx context.Context) (*godbus.Conn, error) {
	return godbus.ConnectSystemBus(godbus.WithContext(ctx))
}

func manager(ctx context.Context, dial func(context.Context) (*godbus.Conn, error)) (*dbus.Conn, error) {
	c, err := dbus.NewConnection(func() (*godbus.Conn, error) { return dial(ctx) })
	if err != nil {
		return nil, module.NoBus(err)
	}
	return c, nil
}

// systemdFeatures is what systemd was built with: "+PAM +AUDIT -APPARMOR …".
func systemdFeatures(ctx context.Context, dial func(context.Context) (*godbus.Conn, error)) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c, err := manager(ctx, dial)
	if err != nil {
		return "", err
	}
	defer c.Close()
	s, err := c.GetManagerProperty("Features")
	if err != nil {
		return "", fault.Unavailable("systemd_silent", "systemd does not tell what it was built with").Wrap(err)
	}
	return strings.Trim(s, `"`), nil
}

// Services is the state of each service that systemd has loaded, by its name without ".service":
// "running", "exited", "failed", "dead" and the like. Without a system bus the error has code
// dbus_missing.
func Services(ctx context.Context) (map[string]string, error) { return services(ctx, systemBus) }

func services(ctx context.Context, dial func(context.Context) (*godbus.Conn, error)) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, busDeadline)
	defer cancel()
	c, err := manager(ctx, dial)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	units, err := c.ListUnitsByPatternsContext(ctx, nil, []string{"*.service"})
	if err != nil {
		return nil, fault.Unavailable("systemd_silent", "systemd does not list its services").Wrap(err)
	}
	out := map[string]string{}
	for _, u := range units {
		// A unit that others only name, and that is nowhere, is no service of the host.
		if name, ok := strings.CutSuffix(u.Name, ".service"); ok && u.LoadState != "not-found" {
			out[name] = u.SubState
		}
	}
	return out, nil
}
