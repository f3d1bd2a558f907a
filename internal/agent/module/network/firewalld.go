package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	godbus "github.com/godbus/dbus/v5"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

// The names of firewalld on the bus.
const (
	fwName    = "org.fedoraproject.FirewallD1"
	fwPath    = godbus.ObjectPath("/org/fedoraproject/FirewallD1")
	fwConfig  = fwName + ".config"
	fwPermObj = fwPath + "/config"
)

// firewall is firewalld for the time of one call.
type firewall struct {
	ctx  context.Context
	conn *godbus.Conn
}

// firewalldDo connects for one call.
func (h *host) firewalldDo(f func(w firewall, c *module.Call) (any, error)) module.Run {
	return func(ctx context.Context, c *module.Call) (any, error) {
		conn, err := h.bus(ctx)
		if err != nil {
			return nil, err
		}
		v, err := f(firewall{ctx, conn}, c)
		return v, errors.Join(err, conn.Close())
	}
}

func (w firewall) call(path godbus.ObjectPath, method string, args []any, out ...any) error {
	reply := w.conn.Object(fwName, path).CallWithContext(w.ctx, method, 0, args...)
	if len(out) == 0 { // Store wants a place for each value, and changes answer with the zone's name
		return firewallFault(reply.Err)
	}
	return firewallFault(reply.Store(out...))
}

// firewallFault gives firewalld's errors codes: its message begins with a word of its own.
func firewallFault(err error) error {
	if err == nil {
		return nil
	}
	var e godbus.Error
	if !errors.As(err, &e) {
		return fault.Unavailable("dbus_failed", "firewalld does not answer on the system bus").Wrap(err)
	}
	word, _, _ := strings.Cut(e.Error(), ":")
	switch {
	case strings.Contains(e.Name, "ServiceUnknown"), strings.Contains(e.Name, "NameHasNoOwner"), strings.Contains(e.Name, "Spawn"):
		return fault.Unavailable("firewalld_missing", "firewalld does not run on this host").Wrap(err).Fix("install and start firewalld")
	case strings.Contains(e.Name, "NotAuthorized"), strings.Contains(e.Name, "AccessDenied"):
		return fault.Denied("firewalld_denied", "firewalld does not let the agent do this").Wrap(err)
	case strings.HasPrefix(word, "INVALID_"), strings.HasPrefix(word, "MISSING_"):
		return fault.NotFound("firewalld_unknown", "firewalld knows no such thing").Wrap(err)
	}
	return fault.Conflict("firewalld_refused", "firewalld refuses").Wrap(err)
}

// already tells whether a change was made before: firewall-cmd takes that for success too.
func already(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "ALREADY_ENABLED") || strings.Contains(err.Error(), "NOT_ENABLED") || strings.Contains(err.Error(), "ZONE_ALREADY_SET") || strings.Contains(err.Error(), "ALREADY_SET"))
}

func success(err error) (any, error) {
	if err == nil || already(err) {
		return "success", nil
	}
	return nil, err
}

// zone is the name of a zone; the default one's when it is not given.
func (w firewall) zone(name string) (string, error) {
	if name != "" {
		return name, nil
	}
	err := w.call(fwPath, fwName+".getDefaultZone", nil, &name)
	return name, err
}

// permanent is the object of a zone's configuration on disk.
func (w firewall) permanent(zone string) (godbus.ObjectPath, error) {
	zone, err := w.zone(zone)
	if err != nil {
		return "", err
	}
	var p godbus.ObjectPath
	err = w.call(fwPermObj, fwConfig+".getZoneByName", []any{zone}, &p)
	return p, err
}

// onZone calls a method of a zone's permanent configuration, or the one of the same purpose of
// the running firewall, which takes the zone's name first and a time out last.
func (w firewall) onZone(zone string, permanent bool, method, running string, args []any, timed bool, out ...any) error {
	if permanent {
		p, err := w.permanent(zone)
		if err != nil {
			return err
		}
		return w.call(p, fwConfig+".zone."+method, args, out...)
	}
	zone, err := w.zone(zone)
	if err != nil {
		return err
	}
	args = append([]any{zone}, args...)
	if timed {
		args = append(args, int32(0))
	}
	return w.call(fwPath, fwName+".zone."+running, args, out...)
}

// settings are a zone's settings of any age of firewalld.
func (w firewall) settings(zone string, permanent bool) (map[string]godbus.Variant, error) {
	m := map[string]godbus.Variant{}
	if permanent {
		p, err := w.permanent(zone)
		if err != nil {
			return nil, err
		}
		return m, w.call(p, fwConfig+".zone.getSettings2", nil, &m)
	}
	zone, err := w.zone(zone)
	if err != nil {
		return nil, err
	}
	return m, w.call(fwPath, fwName+".zone.getZoneSettings2", []any{zone}, &m)
}

// setting is one of them as texts.
func setting(m map[string]godbus.Variant, key string) []string {
	out := []string{}
	switch v := m[key].Value().(type) {
	case []string:
		out = append(out, v...)
	case [][]any: // (ss) and (ssss): ports and where they are sent on
		for _, t := range v {
			var f []string
			for _, x := range t {
				f = append(f, fmt.Sprint(x))
			}
			switch {
			case len(f) == 2:
				out = append(out, f[0]+"/"+f[1])
			case len(f) == 4:
				out = append(out, fmt.Sprintf("port=%s:proto=%s:toport=%s:toaddr=%s", f[0], f[1], f[2], f[3]))
			}
		}
	case bool:
		return []string{map[bool]string{true: "yes", false: "no"}[v]}
	case string:
		return []string{v}
	}
	return out
}

// zoneKeys are what list_all tells, in firewall-cmd's words.
var zoneKeys = [][2]string{{"target", "target"}, {"icmp-block-inversion", "icmp_block_inversion"}, {"interfaces", "interfaces"}, {"sources", "sources"}, {"services", "services"},
	{"ports", "ports"}, {"protocols", "protocols"}, {"forward", "forward"}, {"masquerade", "masquerade"}, {"forward-ports", "forward_ports"}, {"source-ports", "source_ports"},
	{"icmp-blocks", "icmp_blocks"}, {"rich rules", "rules_str"}}

func describeZone(m map[string]godbus.Variant) map[string]any {
	out := map[string]any{}
	for _, k := range zoneKeys {
		l := setting(m, k[1])
		if len(l) == 0 {
			l = []string{""} // as Salt reads an empty line of firewall-cmd
			if k[0] == "masquerade" || k[0] == "icmp-block-inversion" || k[0] == "forward" {
				l = []string{"no"}
			}
		}
		out[k[0]] = l
	}
	return out
}

// splitPort cuts "80/tcp", checking both.
func splitPort(s string) (port, proto string, err error) {
	port, proto, ok := strings.Cut(s, "/")
	if !ok || strings.Trim(port, "0123456789-") != "" || port == "" || !slices.Contains([]string{"tcp", "udp", "sctp", "dccp"}, proto) {
		return "", "", fault.Invalid("bad_port", "%q is no port", s).Fix("write it like 443/tcp or 6000-6010/udp")
	}
	return port, proto, nil
}

func (h *host) firewalld() []module.Function {
	zone := module.May("zone", module.Str, nil)
	zoneFirst := module.Need("zone", module.Str)
	perm := module.May("permanent", module.Bool, true)
	restart := module.May("restart", module.Bool, true)
	force := module.May("force_masquerade", module.Bool, false)
	do := h.firewalldDo

	// names lists texts that one method gives.
	names := func(running, permanent string) module.Run {
		return do(func(w firewall, c *module.Call) (any, error) {
			out := []string{}
			var err error
			if c.Bool("permanent") {
				err = w.call(fwPermObj, fwConfig+"."+permanent, nil, &out)
			} else {
				err = w.call(fwPath, fwName+"."+running, nil, &out)
			}
			slices.Sort(out)
			return out, err
		})
	}
	// list gives one setting of a zone.
	list := func(name, key, doc string, params ...module.Param) module.Function {
		return module.Reads("firewalld."+name, doc+"\n\nsalt '*' firewalld."+name+" zone=public", do(func(w firewall, c *module.Call) (any, error) {
			m, err := w.settings(c.Str("zone"), c.Bool("permanent"))
			if err != nil {
				return nil, err
			}
			return setting(m, key), nil
		}), append(params, perm)...)
	}
	// change calls one method on a zone.
	change := func(name, method, running, doc, example string, timed bool, args func(c *module.Call) ([]any, error), params ...module.Param) module.Function {
		return module.Tests("firewalld."+name, doc+"\n\nsalt '*' firewalld."+name+" "+example, func(ctx context.Context, c *module.Call) (any, error) {
			a, err := args(c)
			if err != nil {
				return nil, err
			}
			if c.Test {
				return "success", nil
			}
			return do(func(w firewall, c *module.Call) (any, error) {
				if c.Bool("force_masquerade") {
					if err := w.onZone(c.Str("zone"), c.Bool("permanent"), "setMasquerade", "addMasquerade", masqueradeArgs(c.Bool("permanent"), true), !c.Bool("permanent")); err != nil && !already(err) {
						return nil, err
					}
				}
				return success(w.onZone(c.Str("zone"), c.Bool("permanent"), method, running, a, timed))
			})(ctx, c)
		}, params...)
	}
	text := func(arg string) func(c *module.Call) ([]any, error) {
		return func(c *module.Call) ([]any, error) {
			s := c.Str(arg)
			if s == "" || strings.ContainsAny(s, "\n\x00") {
				return nil, fault.Invalid("bad_argument", "%q cannot be the %s for firewalld", s, arg)
			}
			return []any{s}, nil
		}
	}
	port := func(c *module.Call) ([]any, error) {
		p, proto, err := splitPort(c.Str("port"))
		return []any{p, proto}, err
	}
	forward := func(c *module.Call) ([]any, error) {
		if _, _, err := splitPort(c.Str("src") + "/" + c.Str("proto")); err != nil {
			return nil, err
		}
		return []any{c.Str("src"), c.Str("proto"), c.Str("dest"), c.Str("dstaddr")}, nil
	}
	forwardParams := []module.Param{zoneFirst, module.Need("src", module.Str), module.Need("dest", module.Str), module.May("proto", module.Str, "tcp"), module.May("dstaddr", module.Str, ""), perm, force}
	masquerade := func(name string, on bool) module.Function {
		running := map[bool]string{true: "addMasquerade", false: "removeMasquerade"}[on]
		return module.Tests("firewalld."+name, map[bool]string{true: "Lets", false: "No longer lets"}[on]+" a zone hide the addresses behind it.\n\nsalt '*' firewalld."+name+" dmz", do(func(w firewall, c *module.Call) (any, error) {
			if c.Test {
				return "success", nil
			}
			p := c.Bool("permanent")
			return success(w.onZone(c.Str("zone"), p, "setMasquerade", running, masqueradeArgs(p, on), on && !p))
		}), zone, perm)
	}
	service := func(name, method, doc, arg string, args func(c *module.Call) ([]any, error)) module.Function {
		return module.Tests("firewalld."+name, doc+"\n\nsalt '*' firewalld."+name+" zone "+arg, func(ctx context.Context, c *module.Call) (any, error) {
			a, err := args(c)
			if err != nil || c.Test {
				return "success", err
			}
			return do(func(w firewall, c *module.Call) (any, error) {
				var p godbus.ObjectPath
				if err := w.call(fwPermObj, fwConfig+".getServiceByName", []any{c.Str("service")}, &p); err != nil {
					return nil, err
				}
				return success(w.call(p, fwConfig+".service."+method, a))
			})(ctx, c)
		}, module.Need("service", module.Str), module.Need(arg, module.Str))
	}
	serviceList := func(name, method, doc string) module.Function {
		return module.Reads("firewalld."+name, doc+"\n\nsalt '*' firewalld."+name+" ssh", do(func(w firewall, c *module.Call) (any, error) {
			var p godbus.ObjectPath
			if err := w.call(fwPermObj, fwConfig+".getServiceByName", []any{c.Str("service")}, &p); err != nil {
				return nil, err
			}
			if method == "getProtocols" {
				out := []string{}
				return out, w.call(p, fwConfig+".service."+method, nil, &out)
			}
			var pairs []struct{ Port, Proto string }
			out := []string{}
			err := w.call(p, fwConfig+".service."+method, nil, &pairs)
			for _, x := range pairs {
				out = append(out, x.Port+"/"+x.Proto)
			}
			return out, err
		}), module.Need("service", module.Str))
	}
	return []module.Function{
		module.Reads("firewalld.version", "Tells the version of firewalld.\n\nsalt '*' firewalld.version", do(func(w firewall, _ *module.Call) (any, error) {
			var v string
			err := w.call(fwPath, "org.freedesktop.DBus.Properties.Get", []any{fwName, "version"}, &v)
			return v, err
		})),
		module.Tests("firewalld.reload_rules", "Lets the permanent configuration be the running one; connections stay.\n\nsalt '*' firewalld.reload_rules", do(func(w firewall, c *module.Call) (any, error) {
			if c.Test {
				return "success", nil
			}
			return success(w.call(fwPath, fwName+".reload", nil))
		})),
		module.Tests("firewalld.make_permanent", "Keeps the running configuration for good.\n\nsalt '*' firewalld.make_permanent", do(func(w firewall, c *module.Call) (any, error) {
			if c.Test {
				return "success", nil
			}
			return success(w.call(fwPath, fwName+".runtimeToPermanent", nil))
		})),
		module.Reads("firewalld.get_zones", "Lists the names of the zones.\n\nsalt '*' firewalld.get_zones", names("zone.getZones", "getZoneNames"), perm),
		module.Reads("firewalld.get_services", "Lists the services that firewalld knows.\n\nsalt '*' firewalld.get_services", names("listServices", "getServiceNames"), perm),
		module.Reads("firewalld.get_icmp_types", "Lists the types of ICMP that firewalld knows.\n\nsalt '*' firewalld.get_icmp_types", names("listIcmpTypes", "getIcmpTypeNames"), perm),
		module.Reads("firewalld.list_zones", "Tells all of all zones.\n\nsalt '*' firewalld.list_zones", do(func(w firewall, c *module.Call) (any, error) {
			var zones []string
			if err := w.call(fwPermObj, fwConfig+".getZoneNames", nil, &zones); err != nil {
				return nil, err
			}
			out := map[string]any{}
			for _, z := range zones {
				m, err := w.settings(z, c.Bool("permanent"))
				if err != nil {
					return nil, err
				}
				out[z] = describeZone(m)
			}
			return out, nil
		}), perm),
		module.Reads("firewalld.list_all", "Tells all of a zone.\n\nsalt '*' firewalld.list_all public", do(func(w firewall, c *module.Call) (any, error) {
			z, err := w.zone(c.Str("zone"))
			if err != nil {
				return nil, err
			}
			m, err := w.settings(z, c.Bool("permanent"))
			if err != nil {
				return nil, err
			}
			return map[string]any{z: describeZone(m)}, nil
		}), zone, perm),
		module.Reads("firewalld.default_zone", "Tells the zone of interfaces that have no other.\n\nsalt '*' firewalld.default_zone", do(func(w firewall, _ *module.Call) (any, error) { return w.zone("") })),
		module.Tests("firewalld.set_default_zone", "Sets the zone of interfaces that have no other.\n\nsalt '*' firewalld.set_default_zone damian", do(func(w firewall, c *module.Call) (any, error) {
			if c.Test {
				return "success", nil
			}
			return success(w.call(fwPath, fwName+".setDefaultZone", []any{c.Str("zone")}))
		}), zoneFirst),
		module.Tests("firewalld.new_zone", "Makes a zone.\n\nsalt '*' firewalld.new_zone my_zone", do(func(w firewall, c *module.Call) (any, error) {
			return w.create(c, fwConfig+".addZone2", c.Str("zone"))
		}), zoneFirst, restart),
		module.Tests("firewalld.delete_zone", "Removes a zone.\n\nsalt '*' firewalld.delete_zone my_zone", do(func(w firewall, c *module.Call) (any, error) {
			return w.remove(c, fwConfig+".getZoneByName", fwConfig+".zone.remove", c.Str("zone"))
		}), zoneFirst, restart),
		module.Tests("firewalld.new_service", "Makes a service, which has no ports yet.\n\nsalt '*' firewalld.new_service my_service", do(func(w firewall, c *module.Call) (any, error) {
			return w.create(c, fwConfig+".addService2", c.Str("name"))
		}), module.Need("name", module.Str), restart),
		module.Tests("firewalld.delete_service", "Removes a service.\n\nsalt '*' firewalld.delete_service my_service", do(func(w firewall, c *module.Call) (any, error) {
			return w.remove(c, fwConfig+".getServiceByName", fwConfig+".service.remove", c.Str("name"))
		}), module.Need("name", module.Str), restart),
		service("add_service_port", "addPort", "Adds a port to a service.", "port", port),
		service("remove_service_port", "removePort", "Takes a port from a service.", "port", port),
		service("add_service_protocol", "addProtocol", "Adds a protocol to a service.", "protocol", text("protocol")),
		service("remove_service_protocol", "removeProtocol", "Takes a protocol from a service.", "protocol", text("protocol")),
		serviceList("get_service_ports", "getPorts", "Lists the ports of a service."),
		serviceList("get_service_protocols", "getProtocols", "Lists the protocols of a service."),
		list("list_services", "services", "Lists the services that a zone lets in.", zone),
		change("add_service", "addService", "addService", "Lets a zone let a service in.", "ssh zone=public", true, text("service"), module.Need("service", module.Str), zone, perm),
		change("remove_service", "removeService", "removeService", "Lets a zone no longer let a service in.", "ssh zone=public", false, text("service"), module.Need("service", module.Str), zone, perm),
		list("list_ports", "ports", "Lists the ports that a zone lets in.", zoneFirst),
		change("add_port", "addPort", "addPort", "Lets a zone let a port in.", "internal 443/tcp", true, port, zoneFirst, module.Need("port", module.Str), perm, force),
		change("remove_port", "removePort", "removePort", "Lets a zone no longer let a port in.", "internal 443/tcp", false, port, zoneFirst, module.Need("port", module.Str), perm),
		list("list_port_fwd", "forward_ports", "Lists the ports that a zone sends on.", zoneFirst),
		change("add_port_fwd", "addForwardPort", "addForwardPort", "Lets a zone send a port on.", "public 80 443 tcp", true, forward, forwardParams...),
		change("remove_port_fwd", "removeForwardPort", "removeForwardPort", "Lets a zone no longer send a port on.", "public 80 443 tcp", false, forward, forwardParams[:6]...),
		list("list_icmp_block", "icmp_blocks", "Lists the types of ICMP that a zone keeps out.", zoneFirst),
		change("block_icmp", "addIcmpBlock", "addIcmpBlock", "Lets a zone keep a type of ICMP out.", "public echo-reply", true, text("icmp"), zoneFirst, module.Need("icmp", module.Str), perm),
		change("allow_icmp", "removeIcmpBlock", "removeIcmpBlock", "Lets a zone let a type of ICMP in.", "public echo-reply", false, text("icmp"), zoneFirst, module.Need("icmp", module.Str), perm),
		list("get_interfaces", "interfaces", "Lists the interfaces of a zone.", zoneFirst),
		change("add_interface", "addInterface", "addInterface", "Puts an interface into a zone.", "public eth0", false, text("interface"), zoneFirst, module.Need("interface", module.Str), perm),
		change("remove_interface", "removeInterface", "removeInterface", "Takes an interface out of a zone.", "public eth0", false, text("interface"), zoneFirst, module.Need("interface", module.Str), perm),
		list("get_sources", "sources", "Lists the networks of a zone.", zoneFirst),
		change("add_source", "addSource", "addSource", "Puts a network into a zone.", "internal 192.168.1.0/24", false, text("source"), zoneFirst, module.Need("source", module.Str), perm),
		change("remove_source", "removeSource", "removeSource", "Takes a network out of a zone.", "internal 192.168.1.0/24", false, text("source"), zoneFirst, module.Need("source", module.Str), perm),
		list("get_rich_rules", "rules_str", "Lists the rich rules of a zone.", zoneFirst),
		list("list_rich_rules", "rules_str", "Lists the rich rules of a zone.", zoneFirst),
		change("add_rich_rule", "addRichRule", "addRichRule", "Adds a rich rule to a zone.", "public 'rule protocol value=vrrp accept'", true, text("rule"), zoneFirst, module.Need("rule", module.Str), perm),
		change("remove_rich_rule", "removeRichRule", "removeRichRule", "Takes a rich rule out of a zone.", "public 'rule protocol value=vrrp accept'", false, text("rule"), zoneFirst, module.Need("rule", module.Str), perm),
		module.Reads("firewalld.get_masquerade", "Tells whether a zone hides the addresses behind it.\n\nsalt '*' firewalld.get_masquerade public", do(func(w firewall, c *module.Call) (any, error) {
			m, err := w.settings(c.Str("zone"), c.Bool("permanent"))
			on, _ := m["masquerade"].Value().(bool)
			return on, err
		}), zone, perm),
		masquerade("add_masquerade", true), masquerade("remove_masquerade", false),
	}
}

// masqueradeArgs: the permanent configuration has one method with a truth, the running one two.
func masqueradeArgs(permanent, on bool) []any {
	if permanent {
		return []any{on}
	}
	return nil
}

// create makes a zone or a service with nothing in it.
func (w firewall) create(c *module.Call, method, name string) (any, error) {
	if c.Test {
		return "success", nil
	}
	var p godbus.ObjectPath
	err := w.call(fwPermObj, method, []any{name, map[string]godbus.Variant{}}, &p)
	return w.reloaded(c, err)
}

func (w firewall) remove(c *module.Call, find, method, name string) (any, error) {
	var p godbus.ObjectPath
	if err := w.call(fwPermObj, find, []any{name}, &p); err != nil || c.Test {
		return "success", err
	}
	return w.reloaded(c, w.call(p, method, nil))
}

func (w firewall) reloaded(c *module.Call, err error) (any, error) {
	if err == nil && c.Bool("restart") {
		err = w.call(fwPath, fwName+".reload", nil)
	}
	return success(err)
}
