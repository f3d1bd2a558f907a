package rpm

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"errors"
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

// Bounds of a comps file: the largest in the field is a fiftieth of it.
const (
	maxComps     = 64 << 20
	maxCompsItem = 1 << 20
)

type compsText struct {
	Lang string `xml:"lang,attr"`
	Text string `xml:",chardata"`
}

type compsIDs struct {
	IDs []string `xml:"groupid"`
}

type compsNames struct {
	ID    string      `xml:"id"`
	Name  []compsText `xml:"name"`
	Desc  []compsText `xml:"description"`
	Order string      `xml:"display_order"`
}

type compsGroup struct {
	compsNames
	Default  string `xml:"default"`
	Visible  string `xml:"uservisible"`
	BiArch   string `xml:"biarchonly"`
	Packages struct {
		Reqs []struct {
			Type     string `xml:"type,attr"`
			Requires string `xml:"requires,attr"`
			Name     string `xml:",chardata"`
		} `xml:"packagereq"`
	} `xml:"packagelist"`
}

func plainText(ts []compsText) string {
	for _, t := range ts {
		if t.Lang == "" {
			return strings.TrimSpace(t.Text)
		}
	}
	return ""
}

func (c compsNames) read() (id, name, desc string, order int) {
	order, _ = strconv.Atoi(strings.TrimSpace(c.Order)) // no number is no wish
	return strings.TrimSpace(c.ID), plainText(c.Name), plainText(c.Desc), order
}

func trimAll(ss []string) []string {
	for i := range ss {
		ss[i] = strings.TrimSpace(ss[i])
	}
	return ss
}

// ReadComps reads a comps.xml, compressed or not, of at most 64 MiB. Elements that it does
// not know are passed over. It reads one group at a time and refuses entities other than
// XML's own. Errors have code repodata.
func ReadComps(r io.Reader) (Comps, error) {
	var c Comps
	in, done, err := Open(r)
	if err != nil {
		return c, err
	}
	defer done()
	d := xml.NewDecoder(&bounded{r: in, left: maxComps})
	root := false
	items := 0
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return c, badMeta("the groups are no XML of their kind").Wrap(err)
		}
		se, ok := t.(xml.StartElement)
		if !ok {
			continue
		}
		if !root {
			if se.Name.Local != "comps" {
				return c, badMeta("groups that start with %.40q", se.Name.Local)
			}
			root = true
			continue
		}
		if err := c.item(d, se); err != nil {
			return c, err
		}
		if items++; items > maxCompsItem {
			return c, badMeta("over %d groups", maxCompsItem)
		}
	}
	if !root {
		return c, badMeta("no groups in it")
	}
	return c, nil
}

// item reads one element below the root.
func (c *Comps) item(d *xml.Decoder, se xml.StartElement) error {
	wrap := func(err error) error {
		if err != nil {
			return badMeta("the groups are no XML of their kind").Wrap(err)
		}
		return nil
	}
	switch se.Name.Local {
	case "group":
		var x compsGroup
		if err := d.DecodeElement(&x, &se); err != nil {
			return wrap(err)
		}
		g := CompsGroup{Default: strings.TrimSpace(x.Default) == "true", Visible: strings.TrimSpace(x.Visible) != "false", BiArchOnly: strings.TrimSpace(x.BiArch) == "true"}
		g.ID, g.Name, g.Description, g.Order = x.read()
		if g.ID == "" {
			return badMeta("a group without an id")
		}
		for _, p := range x.Packages.Reqs {
			g.Packages = append(g.Packages, CompsPackage{strings.TrimSpace(p.Name), cmp.Or(p.Type, "mandatory"), p.Requires})
		}
		c.Groups = append(c.Groups, g)
	case "category":
		var x struct {
			compsNames
			Groups compsIDs `xml:"grouplist"`
		}
		if err := d.DecodeElement(&x, &se); err != nil {
			return wrap(err)
		}
		var g CompsCategory
		g.ID, g.Name, g.Description, g.Order = x.read()
		g.Groups = trimAll(x.Groups.IDs)
		c.Categories = append(c.Categories, g)
	case "environment":
		var x struct {
			compsNames
			Groups  compsIDs `xml:"grouplist"`
			Options compsIDs `xml:"optionlist"`
		}
		if err := d.DecodeElement(&x, &se); err != nil {
			return wrap(err)
		}
		var g CompsEnvironment
		g.ID, g.Name, g.Description, g.Order = x.read()
		g.Groups, g.Options = trimAll(x.Groups.IDs), trimAll(x.Options.IDs)
		c.Environments = append(c.Environments, g)
	default:
		return wrap(d.Skip())
	}
	return nil
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
