package selector

import (
	"slices"
	"strings"
	"testing"
)

// host is a host of a fleet that is only in memory, with what leaves ask about.
type host struct {
	id       int64
	name     string
	agent    string
	online   bool
	facts    map[string]string
	pillar   map[string]string
	labels   map[string]string
	packages map[string]string
	services map[string]string
	ports    []string
}

// small is the fleet of the tables: its facts are flat, as agents send them.
func small() []host {
	return []host{
		{
			id: 1, name: "web-01", agent: "1.10", online: true,
			facts: map[string]string{
				"os": "CentOS Stream", "os_family": "RedHat", "osrelease": "9", "osrelease_info:0": "9", "ipv4:0": "127.0.0.1", "ipv4:1": "10.0.0.1",
				"ip4_interfaces:eth0:0": "10.0.0.1", "roles:0": "web", "roles:1": "cache", "disks:0:name": "sda", "disks:1:name": "sdb", "disks:1:kind": "SSD",
				"selinux:enabled": "True", "mem_total": "2048", "kernelrelease": "5.14.0-503.el9.x86_64", "path": "/a:/b", "host:10": "ten",
			},
			pillar: map[string]string{"app:web:port": "80"}, labels: map[string]string{"role": "web"},
			packages: map[string]string{"openssl": "1:3.2.2-14.el9", "bash": "5.1.8-9.el9"}, services: map[string]string{"sshd": "running"}, ports: []string{"tcp/22", "tcp/80"},
		},
		{
			id: 2, name: "web-02", agent: "1.9", online: true,
			facts: map[string]string{
				"os": "CentOS Stream", "os_family": "RedHat", "osrelease": "10", "osrelease_info:0": "10", "ipv4:0": "10.0.1.2", "ipv6:0": "fe80::2",
				"ip4_interfaces:eth0:0": "10.0.1.2", "roles:0": "web", "selinux:enabled": "False", "mem_total": "10000", "kernelrelease": "6.12.0-55.el10.x86_64", "net:fe80::1": "gw",
			},
			labels:   map[string]string{"role": "web", "canary": ""},
			packages: map[string]string{"openssl": "1:3.2.2-16.el10", "bash": "5.2.26-6.el10"}, services: map[string]string{"sshd": "failed"}, ports: []string{"tcp/22"},
		},
		{
			id: 3, name: "db-01", agent: "2.0",
			facts:  map[string]string{"os": "RedHat", "os_family": "RedHat", "osrelease": "9.10", "ipv4:0": "192.0.2.7", "roles:postgres:port": "5432", "mem_total": "unknown", "gpus": "None"},
			pillar: map[string]string{"app:db:port": "5432"}, labels: map[string]string{"role": "db"},
			packages: map[string]string{"openssl": "3.5.0-1.el9"}, ports: []string{"udp/53"},
		},
		{id: 70, name: "deb-01", facts: map[string]string{"os": "Debian", "os_family": "Debian", "osrelease": "9.9", "ipv4:0": "::ffff:10.0.0.9", "roles:0": "db"}},
	}
}

// has answers one leaf for one host.
func (h host) has(l *Leaf) bool {
	facts := func(m map[string]string) bool {
		for k, v := range m {
			if l.MatchFact(k, v) {
				return true
			}
		}
		return false
	}
	item := func(m map[string]string) bool {
		v, ok := m[l.Key]
		return ok && l.MatchText(v)
	}
	switch l.Kind {
	case ByName, ByNames:
		return l.MatchText(h.name)
	case ByAgent:
		return l.MatchText(h.agent)
	case ByOnline:
		return h.online
	case ByFact:
		return facts(h.facts)
	case ByPillar:
		return facts(h.pillar)
	case ByLabel:
		return item(h.labels)
	case ByPackage:
		return item(h.packages)
	case ByService:
		v := h.services[l.Key]
		return l.Cmp == Present && v == "running" || l.Cmp != Present && l.MatchText(v)
	case ByPort:
		return slices.ContainsFunc(h.ports, func(p string) bool { return p == l.Key || strings.HasSuffix(p, "/"+l.Key) })
	case BySubnet:
		for k, v := range h.facts {
			if strings.HasPrefix(k, "ipv") && l.MatchText(v) {
				return true
			}
		}
		return false
	case ByGroup:
		return l.Key == "all" || l.Key == "first" && h.id == 1
	}
	return false
}

// holds evaluates a tree for one host, without sets.
func (h host) holds(n *Node) bool {
	switch n.Op {
	case And:
		return !slices.ContainsFunc(n.Kids, func(k *Node) bool { return !h.holds(k) })
	case Or:
		return slices.ContainsFunc(n.Kids, h.holds)
	case Not:
		return !h.holds(n.Kids[0])
	}
	return h.has(n.Leaf)
}

// meant are the names of the hosts that Eval gives for a target.
func meant(t *testing.T, form Form, text string) string {
	t.Helper()
	n, err := Parse(form, text)
	if err != nil {
		t.Errorf("%s %q: %v", form, text, err)
		return ""
	}
	return names(t, n)
}

func names(t *testing.T, n *Node) string {
	t.Helper()
	got, err := eval(n)
	if err != nil {
		t.Errorf("%s: %v", n, err)
	}
	return strings.Join(got, " ")
}

func eval(n *Node) (names []string, err error) {
	var all Set
	byID := map[int64]string{}
	for _, h := range small() {
		all.Add(h.id)
		byID[h.id] = h.name
	}
	set, err := Eval(n, all, func(l *Leaf) (out Set, err error) {
		for _, h := range small() {
			if h.has(l) {
				out.Add(h.id)
			}
		}
		out.Add(99) // not one of all
		return out, nil
	})
	for _, id := range set.IDs() {
		names = append(names, byID[id])
	}
	return names, err
}

const everyone = "web-01 web-02 db-01 deb-01"

func TestForms(t *testing.T) {
	for _, c := range []struct {
		form Form
		text string
		want string
	}{
		{Glob, "*", everyone},
		{Glob, "web-0[!2]", "web-01"},
		{Glob, " web-01\n", "web-01"},
		{Glob, "WEB*", ""},
		{PCRE, "web", "web-01 web-02"},
		{PCRE, "b-01", ""},
		{PCRE, `(?!web).*-01$`, "db-01 deb-01"},
		{PCRE, "WEB", ""},
		{ListForm, "web-01,db-01, nobody", "web-01 db-01"},
		{ListForm, "web-01\nweb-02\n", "web-01 web-02"},
		{Grain, "os:centos*", "web-01 web-02"},
		{Grain, "os:CentOS Stream", "web-01 web-02"},
		{Grain, "os:CentOS", ""},
		{Grain, "roles:web", "web-01 web-02"},
		{Grain, "roles:*", everyone},
		{Grain, "roles:postgres", "db-01"},
		{Grain, "roles:postgres:port", "db-01"},
		{Grain, "roles:postgres:5432", ""},
		{Grain, "roles:postgres:port:54*", "db-01"},
		{Grain, "roles:*:port", "db-01"},
		{Grain, "roles:*:port:5432", "db-01"},
		{Grain, "roles:port", ""},
		{Grain, "ip4_interfaces:eth0:10.0.*", "web-01 web-02"},
		{Grain, "ip4_interfaces:eth0", "web-01 web-02"},
		{Grain, "ip4_interfaces:eth1", ""},
		{Grain, "ip4_interfaces:*:10.0.1.2", "web-02"},
		{Grain, "disks:name:sdb", "web-01"},
		{Grain, "disks:name", "web-01"},
		{Grain, "disks:1:name:sdb", "web-01"},
		{Grain, "disks:0:name:sdb", ""},
		{Grain, "disks:kind:ssd", "web-01"},
		{Grain, "host:10", "web-01"},
		{Grain, "path:/a:/b", "web-01"},
		{Grain, "path:/b", ""},
		{Grain, "net:fe80::1:gw", "web-02"},
		{Grain, "gpus:none", "db-01"},
		{Grain, "*:redhat", "web-01 web-02 db-01"},
		{Grain, "o:*", ""},
		{Grain, "selinux:enabled:true", "web-01"},
		{GrainPCRE, "osrelease:(9|10)$", "web-01 web-02"},
		{GrainPCRE, "os:(?:redhat|debian)", "db-01 deb-01"},
		{GrainPCRE, `os:\S+$`, "db-01 deb-01"},
		{GrainPCRE, `path:/a:(?:/b)`, "web-01"},
		{GrainPCRE, `os:.*(E).*\1`, "web-01 web-02"},
		{Pillar, "app:web:*", "web-01"},
		{Pillar, "app:*:port:5432", "db-01"},
		{PillarPCRE, "app:web:port:8.", "web-01"},
		{Nodegroup, "first", "web-01"},
		{Subnet, "10.0.0.0/16", "web-01 web-02 deb-01"},
		{Subnet, "10.0.0.0/255.255.255.0", "web-01 deb-01"},
		{Subnet, "10.0.0.0/0.0.0.255", "web-01 deb-01"},
		{Subnet, "10.0.0.1", "web-01"},
		{Subnet, "::ffff:10.0.0.0/120", "web-01 deb-01"},
		{Subnet, "::ffff:192.0.2.7", "db-01"},
		{Subnet, "fe80::/10", "web-02"},
		{Subnet, "0.0.0.0/0", everyone},
	} {
		if got := meant(t, c.form, c.text); got != c.want {
			t.Errorf("%s %q means %q, not %q", c.form, c.text, got, c.want)
		}
	}
}

func TestCompound(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"web*", "web-01 web-02"},
		{"G@os:Cent*", "web-01 web-02"},
		{"G|@os|Cent*", "web-01 web-02"},
		{"G|@path|/a:/b", "web-01"},
		{"G|@path|/a:*", "web-01"},
		{"G|@net|fe80::1|gw", "web-02"},
		{"G@@os@Cent*", "web-01 web-02"},
		{"Gö@osöCent*", "web-01 web-02"},
		{"P@os:(?:RedHat|CentOS)", "web-01 web-02 db-01"},
		{"P|@os|(?:RedHat|CentOS)", "web-01 web-02 db-01"},
		{"P@os:^debian$", "deb-01"},
		{"P@os:(RedHat|Debian)", "db-01 deb-01"},
		{"I@app:web:port:80", "web-01"},
		{"J|@app|db|port|5.*", "db-01"},
		{"L@web-01,db-01", "web-01 db-01"},
		{"S@10.0.0.0/24", "web-01 deb-01"},
		{"E@(web|db)-01$", "web-01 db-01"},
		{`E@(?=w)\w+-02`, "web-02"},
		{"N@first", "web-01"},
		{"web* not *-02", "web-01"},
		{"web* and not *-02", "web-01"},
		{"not web*", "db-01 deb-01"},
		{"not not web*", "web-01 web-02"},
		{"db* or web* not *-02", "web-01 db-01"},
		{"web* not *-02 or db*", "web-01 db-01"},
		{"( web* or db* ) not *-02", "web-01 db-01"},
		{"(web* or db*) not *-02", "web-01 db-01"},
		{"not(web* or db*)", "deb-01"},
		{"not (web* or db*) and G@os:Debian", "deb-01"},
		{"(not(web* or db*))", "deb-01"},
		{"(P@os:(RedHat|Debian))", "db-01 deb-01"},
		{"((P@os:(RedHat|Debian)) and d*)", "db-01 deb-01"},
		{`(E@web[)-]01)`, "web-01"},
		{`(E@web\)x or db*)`, "db-01"},
		{"web-01 or db-01 and G@os:Debian", "web-01"},
		{"(web-01 or db-01) and G@os:Debian", ""},
		{"G@os_family:RedHat and G@osrelease:9", "web-01"},
		{"\tweb*\n  and\n  *-01 ", "web-01"},
		{"G@roles:web and not G@selinux:enabled:false", "web-01"},
	} {
		if got := meant(t, Compound, c.text); got != c.want {
			t.Errorf("%q means %q, not %q", c.text, got, c.want)
		}
	}
}

func TestQuery(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{`name == "web-01"`, "web-01"},
		{`name = web-01`, "web-01"},
		{`name in (web-01, "db-01")`, "web-01 db-01"},
		{`name not in ("web-01", "db-01")`, "web-02 deb-01"},
		{`host like "web*" and not name ~ '*-02'`, "web-01"},
		{`name not like "web*"`, "db-01 deb-01"},
		{`name =~ "web-(01|03)"`, "web-01"},
		{`name !~ "web"`, "db-01 deb-01"},
		{`not not online`, "web-01 web-02"},
		{`!online`, "db-01 deb-01"},
		{`online == false`, "db-01 deb-01"},
		{`online != false`, "web-01 web-02"},
		{`agent < "1.10"`, "web-02 deb-01"},
		{`fact.os == "CentOS Stream"`, "web-01 web-02"},
		{`fact.os != "CentOS Stream"`, "db-01 deb-01"},
		{`fact.gpus != "x"`, everyone},
		{`fact.gpus and fact.gpus != "x"`, "db-01"},
		{`fact.gpus not in ("None")`, "web-01 web-02 deb-01"},
		{`fact.os =~ "cent"`, ""},
		{`fact.os =~ "(?i)cent"`, "web-01 web-02"},
		{`fact.os !~ "^[CR]"`, "deb-01"},
		{`fact.osrelease == 9`, "web-01"},
		{`fact.osrelease == 9.0`, "web-01"},
		{`fact.osrelease == "9.0"`, ""},
		{`fact.osrelease in (9.0, "9.9")`, "web-01 deb-01"},
		{`fact.osrelease > 9.5`, "web-02 deb-01"},
		{`fact.osrelease > "9.9"`, "web-02 db-01"},
		{`fact.osrelease >= "9.10" and not fact.osrelease > "9.10"`, "db-01"},
		{`fact.mem_total < 4096`, "web-01"},
		{`fact.mem_total >= 4096`, "web-02"},
		{`fact.kernelrelease < 6`, "web-01"},
		{`fact.selinux.enabled == true`, "web-01"},
		{`fact("selinux:enabled") == false`, "web-02"},
		{`fact["selinux:enabled"]`, "web-01 web-02"},
		{`fact.selinux`, "web-01 web-02"},
		{`fact.roles == "web"`, "web-01 web-02"},
		{`fact.roles.1 == "cache"`, "web-01"},
		{`fact.disks.name == "sdb"`, "web-01"},
		{`fact.disks.0.name == "sdb"`, ""},
		{`label.role == web`, "web-01 web-02"},
		{`label("canary")`, "web-02"},
		{`label.role not in ("web")`, "db-01 deb-01"},
		{`pkg("openssl")`, "web-01 web-02 db-01"},
		{`pkg("openssl") < "3.2.2-16"`, "web-01"},
		{`pkg("openssl") == "3.2.2"`, "web-01 web-02"},
		{`pkg("openssl") == "1:3.2.2"`, "web-01 web-02"},
		{`pkg("openssl") >= 3.2.2-16.el10`, "web-02 db-01"},
		{`pkg("openssl") > "1:3"`, "web-01 web-02"},
		{`pkg("openssl") ~ "3.2.2-1[46]*"`, "web-01 web-02"},
		{`pkg("openssl") =~ "1:3"`, "web-01 web-02"},
		{`pkg("bash") in ("5.2.26", "4")`, "web-02"},
		{`not pkg("bash")`, "db-01 deb-01"},
		{`service("sshd")`, "web-01"},
		{`service("sshd") == "failed"`, "web-02"},
		{`port(22) && !port(80)`, "web-02"},
		{`port("udp/53") || port("tcp/80")`, "web-01 db-01"},
		{`subnet("10.0.0.0/24")`, "web-01 deb-01"},
		{`subnet(10.0.0.0/24) and group(first)`, "web-01"},
		{`salt("G@os:CentOS Stream") and salt("E@.*-02")`, "web-02"},
		{`salt("P|@os|(?:RedHat|Debian)")`, "db-01 deb-01"},
	} {
		if got := meant(t, Query, c.text); got != c.want {
			t.Errorf("%q means %q, not %q", c.text, got, c.want)
		}
	}
}
