package rpm

import (
	"cmp"
	"errors"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Update is one erratum of updateinfo.xml.
type Update struct {
	From, Status  string // who says so; "final", "stable" …
	Type          string // "security", "bugfix", "enhancement" or "newpackage"
	Version       string // of the erratum itself
	ID, Title     string
	Issued        string // "2006-01-02 15:04:05" as a rule
	Updated       string // likewise, or empty
	Rights        string
	Release       string
	Pushcount     string
	Severity      string // "Critical", "Important", "Moderate", "Low", "None" or empty
	Summary       string
	Description   string
	Solution      string
	RebootAdvised bool // of the erratum as a whole; packages have their own
	References    []UpdateReference
	Collections   []UpdateCollection
}

// UpdateReference is a place that tells more of an erratum.
type UpdateReference struct {
	Href  string
	ID    string // "CVE-2024-1234", a number of a bug
	Type  string // "cve", "bugzilla", "self", "other"
	Title string
}

// UpdateCollection is the packages of an erratum for one product or stream of a module.
type UpdateCollection struct {
	Short, Name string
	Module      *UpdateModule // nil for none
	Packages    []UpdatePackage
}

// UpdateModule is the stream of a module that an erratum is for.
type UpdateModule struct {
	Name, Stream, Context, Arch string
	Version                     uint64
}

// UpdatePackage is a package that solves an erratum.
type UpdatePackage struct {
	NEVRA
	Src       string // file name of the source RPM
	Filename  string
	Algo, Sum string // hex; empty when not told
	// What has to be done once it is installed.
	Reboot, Restart, Relogin bool
}

// Bounds of updateinfo.xml: EPEL's has 30 MB unpacked, and the longest description in the field
// some 200 KiB.
const (
	maxUpdateText  = 1 << 20
	maxUpdates     = 200_000
	maxUpdateItems = 4_000_000 // packages and references in all
	maxUpdateinfo  = 512 << 20
)

// ReadUpdateinfo reads an updateinfo.xml, compressed or not, erratum by erratum. It holds one at
// a time; an error of fn ends it. Errors have code repodata.
func ReadUpdateinfo(r io.Reader, fn func(Update) error) error {
	in, done, err := Open(r)
	if err != nil {
		return err
	}
	defer done()
	x := newScanner(&bounded{r: in, left: maxUpdateinfo})
	root, err := x.element()
	if err != nil {
		return err
	}
	if string(root.name) != "updates" || root.end {
		return badMeta("errata that start with %.40q", root.name)
	}
	n, items := 0, 0
	err = x.children(root, func(t tag) error {
		if string(t.name) != "update" {
			return nil
		}
		if n++; n > maxUpdates {
			return badMeta("over %d errata", maxUpdates)
		}
		u, err := x.update(t, &items)
		if err != nil {
			return err
		}
		if u.ID == "" {
			return badMeta("an erratum without an id")
		}
		return fn(u)
	})
	if err == nil {
		err = x.tail()
	}
	return err
}

// into reads several attributes.
func (t tag) into(to map[string]*string) (err error) {
	for name, v := range to {
		if *v, err = t.attr(name); err != nil {
			return err
		}
	}
	return nil
}

func (x *scanner) update(t tag, items *int) (u Update, err error) {
	if err := t.into(map[string]*string{"from": &u.From, "status": &u.Status, "type": &u.Type, "version": &u.Version}); err != nil {
		return u, err
	}
	item := func() error {
		if *items++; *items > maxUpdateItems {
			return badMeta("errata with over %d packages", maxUpdateItems)
		}
		return nil
	}
	err = x.children(t, func(t tag) (err error) {
		var to *string
		switch string(t.name) {
		case "id":
			to = &u.ID
		case "title":
			to = &u.Title
		case "issued":
			u.Issued, err = t.attr("date")
		case "updated":
			u.Updated, err = t.attr("date")
		case "rights":
			to = &u.Rights
		case "release":
			to = &u.Release
		case "pushcount":
			to = &u.Pushcount
		case "severity":
			to = &u.Severity
		case "summary":
			to = &u.Summary
		case "description":
			to = &u.Description
		case "solution":
			to = &u.Solution
		case "reboot_suggested":
			u.RebootAdvised, err = x.truth(t)
		case "references":
			return x.children(t, func(t tag) error {
				if string(t.name) != "reference" {
					return nil
				}
				var r UpdateReference
				if err := errors.Join(t.into(map[string]*string{"href": &r.Href, "id": &r.ID, "type": &r.Type, "title": &r.Title}), item()); err != nil {
					return err
				}
				u.References = append(u.References, r)
				return nil
			})
		case "pkglist":
			return x.children(t, func(t tag) error {
				if string(t.name) != "collection" {
					return nil
				}
				if err := item(); err != nil {
					return err
				}
				c, err := x.collection(t, item)
				u.Collections = append(u.Collections, c)
				return err
			})
		}
		if to != nil && err == nil {
			*to, err = x.textOf(t, maxUpdateText)
			*to = strings.TrimSpace(*to)
		}
		return err
	})
	return u, err
}

// truth is the text of an element that means yes or no.
func (x *scanner) truth(t tag) (bool, error) {
	s, err := x.word(t)
	return strings.EqualFold(s, "true") || s == "1", err
}

func (x *scanner) collection(t tag, item func() error) (c UpdateCollection, err error) {
	if c.Short, err = t.attr("short"); err != nil {
		return c, err
	}
	err = x.children(t, func(t tag) (err error) {
		switch string(t.name) {
		case "name":
			c.Name, err = x.word(t)
		case "module":
			var m UpdateModule
			var v string
			if err := t.into(map[string]*string{"name": &m.Name, "stream": &m.Stream, "version": &v, "context": &m.Context, "arch": &m.Arch}); err != nil {
				return err
			}
			if m.Version, err = strconv.ParseUint(v, 10, 64); err != nil {
				return badMeta("an erratum for version %.40q of a module", v)
			}
			c.Module = &m
		case "package":
			if err := item(); err != nil {
				return err
			}
			var p UpdatePackage
			p, err = x.updatePackage(t)
			c.Packages = append(c.Packages, p)
		}
		return err
	})
	return c, err
}

func (x *scanner) updatePackage(t tag) (p UpdatePackage, err error) {
	var epoch string
	if err := t.into(map[string]*string{"name": &p.Name, "version": &p.Version, "release": &p.Release, "epoch": &epoch, "arch": &p.Arch, "src": &p.Src}); err != nil {
		return p, err
	}
	if epoch != "" && epoch != "None" { // as old versions of Bodhi wrote it
		n, err := strconv.ParseUint(epoch, 10, 32)
		if err != nil {
			return p, badMeta("an erratum with the epoch %.40q", epoch)
		}
		p.Epoch = uint32(n)
	}
	if p.Name == "" || p.Version == "" || p.Release == "" || p.Arch == "" {
		return p, badMeta("an erratum with a package without a name, version or arch")
	}
	err = x.children(t, func(t tag) (err error) {
		switch string(t.name) {
		case "filename":
			p.Filename, err = x.word(t)
		case "sum":
			if p.Algo, err = t.attr("type"); err == nil {
				p.Sum, err = x.word(t)
			}
			if err == nil && !checkSum(p.Algo, p.Sum) { // md5 of old errata; nobody looks
				p.Algo, p.Sum = "", ""
			}
		case "reboot_suggested":
			p.Reboot, err = x.flag(t)
		case "restart_suggested":
			p.Restart, err = x.flag(t)
		case "relogin_suggested":
			p.Relogin, err = x.flag(t)
		}
		return err
	})
	return p, err
}

// flag is an element that means yes by being there, unless it says no.
func (x *scanner) flag(t tag) (bool, error) {
	s, err := x.word(t)
	return !strings.EqualFold(s, "false") && s != "0", err
}

// UpdateinfoXML writes an updateinfo.xml: errata by id, their references, collections and packages
// in an order of their own, so that the same errata give the same bytes.
func UpdateinfoXML(updates []Update) []byte {
	b := []byte(xmlHead + "<updates>\n")
	text := func(depth int, name, v string) {
		if v != "" {
			b = element(b, depth, name, []byte(v))
		}
	}
	date := func(name, v string) {
		if v != "" {
			b = append(b, "    <"+name...)
			b = append(attr(b, "date", []byte(v)), "/>\n"...)
		}
	}
	for _, u := range slices.SortedStableFunc(slices.Values(updates), func(a, b Update) int { return strings.Compare(a.ID, b.ID) }) {
		b = append(b, "  <update"...)
		for _, a := range [][2]string{{"from", u.From}, {"status", u.Status}, {"type", u.Type}, {"version", u.Version}} {
			if a[1] != "" {
				b = attr(b, a[0], []byte(a[1]))
			}
		}
		b = append(b, ">\n"...)
		text(2, "id", u.ID)
		b = element(b, 2, "title", []byte(u.Title))
		date("issued", u.Issued)
		date("updated", u.Updated)
		text(2, "rights", u.Rights)
		text(2, "release", u.Release)
		text(2, "pushcount", u.Pushcount)
		text(2, "severity", u.Severity)
		text(2, "summary", u.Summary)
		b = element(b, 2, "description", []byte(u.Description))
		text(2, "solution", u.Solution)
		if u.RebootAdvised {
			text(2, "reboot_suggested", "True")
		}
		b = append(b, "    <references>\n"...)
		for _, r := range slices.SortedStableFunc(slices.Values(u.References), compareReferences) {
			b = append(b, "      <reference"...)
			for _, a := range [][2]string{{"href", r.Href}, {"id", r.ID}, {"type", r.Type}, {"title", r.Title}} {
				b = attr(b, a[0], []byte(a[1]))
			}
			b = append(b, "/>\n"...)
		}
		b = append(b, "    </references>\n    <pkglist>\n"...)
		for _, c := range slices.SortedStableFunc(slices.Values(u.Collections), compareCollections) {
			b = c.xml(b)
		}
		b = append(b, "    </pkglist>\n  </update>\n"...)
	}
	return append(b, "</updates>\n"...)
}

func (c UpdateCollection) xml(b []byte) []byte {
	b = append(b, "      <collection"...)
	if c.Short != "" {
		b = attr(b, "short", []byte(c.Short))
	}
	b = append(b, ">\n"...)
	if c.Name != "" {
		b = element(b, 4, "name", []byte(c.Name))
	}
	if m := c.Module; m != nil {
		b = append(b, "        <module"...)
		for _, a := range [][2]string{{"name", m.Name}, {"stream", m.Stream}, {"version", strconv.FormatUint(m.Version, 10)}, {"context", m.Context}, {"arch", m.Arch}} {
			b = attr(b, a[0], []byte(a[1]))
		}
		b = append(b, "/>\n"...)
	}
	for _, p := range slices.SortedStableFunc(slices.Values(c.Packages), func(a, b UpdatePackage) int {
		return cmp.Or(a.NEVRA.Compare(b.NEVRA), strings.Compare(a.Filename, b.Filename), strings.Compare(a.Src, b.Src), strings.Compare(a.Sum, b.Sum))
	}) {
		b = append(b, "        <package"...)
		for _, a := range [][2]string{{"name", p.Name}, {"version", p.Version}, {"release", p.Release}, {"epoch", strconv.FormatUint(uint64(p.Epoch), 10)}, {"arch", p.Arch}, {"src", p.Src}} {
			b = attr(b, a[0], []byte(a[1]))
		}
		b = append(b, ">\n"...)
		b = element(b, 5, "filename", []byte(p.Filename))
		if p.Sum != "" {
			b = append(b, "          <sum"...)
			b = attr(b, "type", []byte(p.Algo))
			b = append(escape(append(b, '>'), []byte(p.Sum), false), "</sum>\n"...)
		}
		for _, f := range []struct {
			name string
			yes  bool
		}{{"reboot", p.Reboot}, {"restart", p.Restart}, {"relogin", p.Relogin}} {
			if f.yes {
				b = element(b, 5, f.name+"_suggested", []byte("True"))
			}
		}
		b = append(b, "        </package>\n"...)
	}
	return append(b, "      </collection>\n"...)
}

func compareReferences(a, b UpdateReference) int {
	return cmp.Or(strings.Compare(a.Type, b.Type), strings.Compare(a.ID, b.ID), strings.Compare(a.Href, b.Href), strings.Compare(a.Title, b.Title))
}

func compareCollections(a, b UpdateCollection) int {
	am, bm := cmp.Or(a.Module, &UpdateModule{}), cmp.Or(b.Module, &UpdateModule{})
	return cmp.Or(strings.Compare(a.Short, b.Short), strings.Compare(a.Name, b.Name), strings.Compare(am.Name, bm.Name), strings.Compare(am.Stream, bm.Stream), cmp.Compare(am.Version, bm.Version),
		strings.Compare(am.Context, bm.Context), strings.Compare(am.Arch, bm.Arch))
}

// MergeUpdates makes one list of several, by id. Of two errata of one id the one of the higher
// version counts, then the one that was updated later; of two that are as new the earlier list's
// counts, with the packages of both: repositories name the packages that they have.
func MergeUpdates(lists ...[]Update) []Update {
	byID := map[string][]Update{} // those that are as new
	for _, l := range lists {
		for _, u := range l {
			have := byID[u.ID]
			c := 1
			if len(have) > 0 {
				c = cmp.Or(CompareVersions(u.Version, have[0].Version), strings.Compare(cmp.Or(u.Updated, u.Issued), cmp.Or(have[0].Updated, have[0].Issued)))
			}
			switch {
			case c > 0:
				byID[u.ID] = []Update{u}
			case c == 0:
				byID[u.ID] = append(have, u)
			}
		}
	}
	out := make([]Update, 0, len(byID))
	for _, id := range slices.Sorted(maps.Keys(byID)) {
		same := byID[id]
		u := same[0]
		if len(same) > 1 {
			u.Collections = joinCollections(same)
		}
		out = append(out, u)
	}
	return out
}

// joinCollections joins the packages of collections of the same name and module.
func joinCollections(same []Update) (out []UpdateCollection) {
	type key struct {
		short, name string
		module      UpdateModule
	}
	type member struct {
		nth int
		pkg NEVRA
	}
	nth := map[key]int{}
	have := map[member]bool{}
	for _, u := range same {
		for _, c := range u.Collections {
			k := key{c.Short, c.Name, UpdateModule{}}
			if c.Module != nil {
				k.module = *c.Module
			}
			i, ok := nth[k]
			if !ok {
				i = len(out)
				nth[k] = i
				out = append(out, UpdateCollection{Short: c.Short, Name: c.Name, Module: c.Module})
			}
			for _, p := range c.Packages {
				if m := (member{i, p.NEVRA}); !have[m] {
					have[m] = true
					out[i].Packages = append(out[i].Packages, p)
				}
			}
		}
	}
	return out
}

// Filter is the erratum with those packages that are there, and whether any is: dnf takes an
// erratum for open as long as a package of it is newer than what is installed.
func (u Update) Filter(has func(NEVRA) bool) (Update, bool) {
	var out []UpdateCollection
	for _, c := range u.Collections {
		var ps []UpdatePackage
		for _, p := range c.Packages {
			if has(p.NEVRA) {
				ps = append(ps, p)
			}
		}
		if c.Packages = ps; len(ps) > 0 {
			out = append(out, c)
		}
	}
	u.Collections = out
	return u, len(out) > 0
}
