package network

import (
	"context"
	"strings"
	"sync"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"drover/internal/agent/module/bustest"
	"drover/internal/fault"
)

// zoneObject stands for firewalld, which needs a kernel's firewall: it notes what it is asked.
type zoneObject struct {
	mu  sync.Mutex
	did []string
}

func (z *zoneObject) note(what string, args ...string) *godbus.Error {
	line := what + " " + strings.Join(args, " ")
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, d := range z.did {
		if d == line {
			return &godbus.Error{Name: fwName + ".Exception", Body: []any{"ALREADY_ENABLED: " + line}}
		}
	}
	z.did = append(z.did, line)
	return nil
}

func (z *zoneObject) AddPort(port, proto string) *godbus.Error { return z.note("addPort", port, proto) }
func (z *zoneObject) AddService(s string) *godbus.Error        { return z.note("addService", s) }
func (z *zoneObject) AddRichRule(s string) *godbus.Error       { return z.note("addRichRule", s) }
func (z *zoneObject) AddForwardPort(a, b, c, d string) *godbus.Error {
	return z.note("addForwardPort", a, b, c, d)
}
func (z *zoneObject) SetMasquerade(on bool) *godbus.Error { return z.note("setMasquerade") }

func (z *zoneObject) GetSettings2() (map[string]godbus.Variant, *godbus.Error) {
	return map[string]godbus.Variant{"ports": godbus.MakeVariant([]struct{ A, B string }{{"443", "tcp"}}), "services": godbus.MakeVariant([]string{"ssh"}), "masquerade": godbus.MakeVariant(true),
		"forward_ports": godbus.MakeVariant([]struct{ A, B, C, D string }{{"80", "tcp", "8080", ""}}), "target": godbus.MakeVariant("default")}, nil
}

type configObject struct{}

func (configObject) GetZoneByName(name string) (godbus.ObjectPath, *godbus.Error) {
	if name != "public" {
		return "", &godbus.Error{Name: fwName + ".Exception", Body: []any{"INVALID_ZONE: " + name}}
	}
	return fwPermObj + "/zone/1", nil
}
func (configObject) GetZoneNames() ([]string, *godbus.Error) { return []string{"public"}, nil }

type mainObject struct{ z *zoneObject }

func (mainObject) GetDefaultZone() (string, *godbus.Error) { return "public", nil }
func (m mainObject) Reload() *godbus.Error                 { return m.z.note("reload") }

type runningObject struct{ z *zoneObject }

func (r runningObject) AddService(zone, s string, timeout int32) (string, *godbus.Error) {
	return zone, r.z.note("running addService", zone, s)
}
func (r runningObject) RemoveService(zone, s string) (string, *godbus.Error) {
	return zone, r.z.note("running removeService", zone, s)
}

func TestFirewalld(t *testing.T) {
	h := machine()
	address := bustest.Start(t)
	h.bus = func(ctx context.Context) (*godbus.Conn, error) {
		return godbus.Connect(address, godbus.WithContext(ctx))
	}
	if _, err := call(t, h, "firewalld.default_zone"); fault.Code(err) != "firewalld_missing" {
		t.Errorf("without firewalld: %v", err)
	}
	conn, err := h.bus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	z := &zoneObject{}
	lower := map[string]string{}
	for _, n := range strings.Fields("AddPort AddService AddRichRule AddForwardPort SetMasquerade GetSettings2 GetZoneByName GetZoneNames GetDefaultZone Reload RemoveService") {
		lower[n] = strings.ToLower(n[:1]) + n[1:]
	}
	for _, o := range []struct {
		v     any
		path  godbus.ObjectPath
		iface string
	}{{z, fwPermObj + "/zone/1", fwConfig + ".zone"}, {configObject{}, fwPermObj, fwConfig}, {mainObject{z}, fwPath, fwName}, {runningObject{z}, fwPath, fwName + ".zone"}} {
		if err := conn.ExportWithMap(o.v, lower, o.path, o.iface); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.RequestName(fwName, 0); err != nil {
		t.Fatal(err)
	}
	check(t, h, []answer{
		{"firewalld.default_zone", nil, `"public"`},
		{"firewalld.get_zones", nil, `["public"]`},
		{"firewalld.list_ports", []any{"public"}, `["443/tcp"]`},
		{"firewalld.list_services", nil, `["ssh"]`},
		{"firewalld.list_port_fwd", []any{"public"}, `["port=80:proto=tcp:toport=8080:toaddr="]`},
		{"firewalld.get_masquerade", nil, `true`},
		{"firewalld.list_all", nil, `{"public":{"forward":["no"],"forward-ports":["port=80:proto=tcp:toport=8080:toaddr="],"icmp-block-inversion":["no"],"icmp-blocks":[""],"interfaces":[""],"masquerade":["yes"],"ports":["443/tcp"],"protocols":[""],"rich rules":[""],"services":["ssh"],"source-ports":[""],"sources":[""],"target":["default"]}}`},
		{"firewalld.add_port", []any{"public", "8080/tcp"}, `"success"`},
		{"firewalld.add_port", []any{"public", "8080/tcp"}, `"success"`},
		{"firewalld.add_service", []any{"http"}, `"success"`},
		{"firewalld.add_service", []any{"http", kw{"permanent": false}}, `"success"`},
		{"firewalld.remove_service", []any{"http", "public", false}, `"success"`},
		{"firewalld.add_rich_rule", []any{"public", "rule accept"}, `"success"`},
		{"firewalld.add_port_fwd", []any{"public", "80", "443", kw{"force_masquerade": true}}, `"success"`},
		{"firewalld.reload_rules", nil, `"success"`},
	})
	want := "addPort 8080 tcp;addService http;running addService public http;running removeService public http;addRichRule rule accept;setMasquerade ;addForwardPort 80 tcp 443 ;reload "
	z.mu.Lock()
	got := strings.Join(z.did, ";")
	z.mu.Unlock()
	if got != want {
		t.Errorf("firewalld was asked %q\nwant %q", got, want)
	}
	if _, err := call(t, h, "firewalld.add_service", "http", "nope"); fault.Code(err) != "firewalld_unknown" {
		t.Error(err)
	}
	if _, err := call(t, h, "firewalld.add_port", "public", "443"); fault.Code(err) != "bad_port" {
		t.Error(err)
	}
}
