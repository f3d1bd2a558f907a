package rpm

import (
	"bytes"
	"cmp"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Comps is the groups of a repository (comps.xml, as libcomps reads it). Translations of
// names are not kept.
type Comps struct {
	Groups       []CompsGroup
	Categories   []CompsCategory
	Environments []CompsEnvironment
}

// CompsGroup is a named list of packages: what "dnf group install" takes.
type CompsGroup struct {
	ID, Name, Description string
	Default               bool // chosen unless somebody says no
	Visible               bool // shown to users
	Order                 int  // for display, 0 when not told
	BiArchOnly            bool
	Packages              []CompsPackage
}

// CompsPackage is a package of a group.
type CompsPackage struct {
	Name     string
	Type     string // "mandatory", "default", "optional" or "conditional"
	Requires string // of a conditional one: the package that must be there
}

// CompsCategory is a list of groups for display.
type CompsCategory struct {
	ID, Name, Description string
	Order                 int
	Groups                []string // ids
}

// CompsEnvironment is a list of groups that make up a kind of machine.
type CompsEnvironment struct {
	ID, Name, Description string
	Order                 int
	Groups                []string // ids
	Options               []string // ids of groups offered with it
}

// Bounds of a comps file, unpacked: the largest in the field has an eighth of the bytes and
// some hundred groups.
const (
	maxComps     = 16 << 20
	maxCompsItem = 1 << 16
)

// ReadComps reads a comps.xml, compressed or not, of at most 16 MiB. Elements that it does
// not know are passed over. Errors have code repodata.
func ReadComps(r io.Reader) (Comps, error) {
	var c Comps
	in, done, err := Open(r)
	if err != nil {
		return c, err
	}
	defer done()
	x := newScanner(&bounded{r: in, left: maxComps})
	x.doctype = true
	root, err := x.element()
	if err != nil {
		return c, err
	}
	if string(root.name) != "comps" || root.end {
		return c, badMeta("groups that start with %.40q", root.name)
	}
	items := 0
	err = x.children(root, func(t tag) error {
		if items++; items > maxCompsItem {
			return badMeta("over %d groups", maxCompsItem)
		}
		switch string(t.name) {
		case "group":
			return c.group(x, t)
		case "category":
			var g CompsCategory
			err := x.children(t, func(t tag) error {
				if string(t.name) == "grouplist" {
					return x.groupIDs(t, &g.Groups)
				}
				return x.compsField(t, &g.ID, &g.Name, &g.Description, &g.Order)
			})
			c.Categories = append(c.Categories, g)
			return err
		case "environment":
			var g CompsEnvironment
			err := x.children(t, func(t tag) error {
				switch string(t.name) {
				case "grouplist":
					return x.groupIDs(t, &g.Groups)
				case "optionlist":
					return x.groupIDs(t, &g.Options)
				}
				return x.compsField(t, &g.ID, &g.Name, &g.Description, &g.Order)
			})
			c.Environments = append(c.Environments, g)
			return err
		}
		return nil
	})
	if err == nil {
		err = x.tail()
	}
	return c, err
}

// group reads a group.
func (c *Comps) group(x *scanner, t tag) error {
	g := CompsGroup{Visible: true}
	err := x.children(t, func(t tag) error {
		switch string(t.name) {
		case "default":
			s, err := x.word(t)
			g.Default = s == "true"
			return err
		case "uservisible":
			s, err := x.word(t)
			g.Visible = s != "false"
			return err
		case "biarchonly":
			s, err := x.word(t)
			g.BiArchOnly = s == "true"
			return err
		case "packagelist":
			return x.children(t, func(t tag) error {
				if string(t.name) != "packagereq" {
					return nil
				}
				p, err := x.compsPackage(t)
				g.Packages = append(g.Packages, p)
				return err
			})
		}
		return x.compsField(t, &g.ID, &g.Name, &g.Description, &g.Order)
	})
	if err == nil && g.ID == "" {
		err = badMeta("a group without an id")
	}
	c.Groups = append(c.Groups, g)
	return err
}

// compsPackage reads a package of a group.
func (x *scanner) compsPackage(t tag) (p CompsPackage, err error) {
	p.Type, err = t.attr("type")
	if err == nil {
		p.Requires, err = t.attr("requires")
	}
	if p.Type == "" {
		p.Type = "mandatory"
	}
	if err == nil {
		p.Name, err = x.word(t)
	}
	if err == nil && p.Name == "" {
		err = badMeta("a group with a package without a name")
	}
	return p, err
}

// compsField reads one of the elements that groups, categories and environments share. The
// first text without a language counts.
func (x *scanner) compsField(t tag, id, name, description *string, order *int) error {
	var to *string
	switch string(t.name) {
	case "id":
		to = id
	case "name":
		to = name
	case "description":
		to = description
	case "display_order":
		s, err := x.word(t)
		*order, _ = strconv.Atoi(s) // no number is no wish
		return err
	default:
		return nil
	}
	lang, err := t.attr("xml:lang")
	if err != nil || lang != "" || *to != "" {
		return err
	}
	*to, err = x.word(t)
	return err
}

// groupIDs reads a list of ids of groups.
func (x *scanner) groupIDs(t tag, out *[]string) error {
	return x.children(t, func(t tag) error {
		if string(t.name) != "groupid" {
			return nil
		}
		s, err := x.word(t)
		*out = append(*out, s)
		return err
	})
}

// XML writes comps.xml. Groups, categories and environments come sorted by id and packages
// by type and name: the same content gives the same bytes.
func (c Comps) XML() []byte {
	b := []byte(xmlHead + `<!DOCTYPE comps PUBLIC "-//CentOS//DTD Comps info//EN" "comps.dtd">` + "\n<comps>\n")
	open := func(depth int, name string) {
		b = append(append(append(append(b, bytes.Repeat([]byte("  "), depth)...), '<'), name...), ">\n"...)
	}
	text := func(depth int, name, v string) { b = element(b, depth, name, []byte(v)) }
	flag := func(name string, v bool) { text(2, name, strconv.FormatBool(v)) }
	order := func(n int) {
		if n != 0 {
			text(2, "display_order", strconv.Itoa(n))
		}
	}
	list := func(name string, ids []string) {
		open(2, name)
		for _, id := range ids {
			text(3, "groupid", id)
		}
		open(2, "/"+name)
	}
	names := func(id, name, desc string) {
		text(2, "id", id)
		text(2, "name", name)
		text(2, "description", desc)
	}
	for _, g := range slices.SortedStableFunc(slices.Values(c.Groups), func(a, b CompsGroup) int { return strings.Compare(a.ID, b.ID) }) {
		open(1, "group")
		names(g.ID, g.Name, g.Description)
		flag("default", g.Default)
		flag("uservisible", g.Visible)
		if g.BiArchOnly {
			flag("biarchonly", true)
		}
		order(g.Order)
		open(2, "packagelist")
		ps := slices.SortedStableFunc(slices.Values(g.Packages), func(a, b CompsPackage) int {
			return cmp.Or(strings.Compare(a.Type, b.Type), strings.Compare(a.Name, b.Name), strings.Compare(a.Requires, b.Requires))
		})
		for _, p := range slices.Compact(ps) {
			b = append(b, "      <packagereq"...)
			if p.Requires != "" {
				b = attr(b, "requires", []byte(p.Requires))
			}
			b = attr(b, "type", []byte(cmp.Or(p.Type, "mandatory")))
			b = append(escape(append(b, '>'), []byte(p.Name), false), "</packagereq>\n"...)
		}
		open(2, "/packagelist")
		open(1, "/group")
	}
	for _, g := range slices.SortedStableFunc(slices.Values(c.Categories), func(a, b CompsCategory) int { return strings.Compare(a.ID, b.ID) }) {
		open(1, "category")
		names(g.ID, g.Name, g.Description)
		order(g.Order)
		list("grouplist", g.Groups)
		open(1, "/category")
	}
	for _, g := range slices.SortedStableFunc(slices.Values(c.Environments), func(a, b CompsEnvironment) int { return strings.Compare(a.ID, b.ID) }) {
		open(1, "environment")
		names(g.ID, g.Name, g.Description)
		order(g.Order)
		list("grouplist", g.Groups)
		list("optionlist", g.Options)
		open(1, "/environment")
	}
	return append(b, "</comps>\n"...)
}
