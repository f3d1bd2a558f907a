package rpm

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Comps is the groups of a repository (comps.xml, as libcomps reads it).
type Comps struct {
	Groups       []CompsGroup
	Categories   []CompsCategory
	Environments []CompsEnvironment
	LangPacks    []CompsLangPack
	Blacklist    []CompsBlack
	Whitelist    []CompsWhite
}

// CompsLangPack is what a language adds for a package that is installed.
type CompsLangPack struct {
	Name    string // of the package
	Install string // what is installed with it, "%s" for the language
}

// CompsBlack is a package that no group may bring.
type CompsBlack struct{ Name, Arch string }

// CompsWhite is a dependency that is not followed where packages of several arches could.
type CompsWhite struct{ Package, Requires string }

// CompsTexts is a name and a description in other languages.
type CompsTexts struct {
	Names, Descriptions map[string]string // by language: "de", "pt_BR"
}

// CompsGroup is a named list of packages: what "dnf group install" takes.
type CompsGroup struct {
	ID, Name, Description string
	CompsTexts
	Default    bool // chosen unless somebody says no
	Visible    bool // shown to users
	Order      int  // for display, 0 when not told
	BiArchOnly bool
	Packages   []CompsPackage
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
	CompsTexts
	Order  int
	Groups []string // ids
}

// CompsEnvironment is a list of groups that make up a kind of machine.
type CompsEnvironment struct {
	ID, Name, Description string
	CompsTexts
	Order   int
	Groups  []string // ids
	Options []string // ids of groups offered with it
	Chosen  []string // those of Options that are taken unless somebody says no
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
				return x.compsField(t, &g.ID, &g.Name, &g.Description, &g.CompsTexts, &g.Order)
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
					return x.optionIDs(t, &g)
				}
				return x.compsField(t, &g.ID, &g.Name, &g.Description, &g.CompsTexts, &g.Order)
			})
			c.Environments = append(c.Environments, g)
			return err
		case "langpacks":
			return x.children(t, func(t tag) error {
				var l CompsLangPack
				if string(t.name) != "match" {
					return nil
				}
				err := t.into(map[string]*string{"name": &l.Name, "install": &l.Install})
				c.LangPacks = append(c.LangPacks, l)
				return err
			})
		case "blacklist":
			return x.children(t, func(t tag) error {
				var l CompsBlack
				if string(t.name) != "package" {
					return nil
				}
				err := t.into(map[string]*string{"name": &l.Name, "arch": &l.Arch})
				c.Blacklist = append(c.Blacklist, l)
				return err
			})
		case "whitelist":
			return x.children(t, func(t tag) error {
				var l CompsWhite
				if string(t.name) != "ignoredep" {
					return nil
				}
				err := t.into(map[string]*string{"package": &l.Package, "requires": &l.Requires})
				c.Whitelist = append(c.Whitelist, l)
				return err
			})
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
		return x.compsField(t, &g.ID, &g.Name, &g.Description, &g.CompsTexts, &g.Order)
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
func (x *scanner) compsField(t tag, id, name, description *string, texts *CompsTexts, order *int) error {
	var to *string
	var translated *map[string]string
	switch string(t.name) {
	case "id":
		to = id
	case "name":
		to, translated = name, &texts.Names
	case "description":
		to, translated = description, &texts.Descriptions
	case "display_order":
		s, err := x.word(t)
		*order, _ = strconv.Atoi(s) // no number is no wish
		return err
	default:
		return nil
	}
	lang, err := t.attr("xml:lang")
	switch {
	case err != nil:
		return err
	case lang == "" && *to == "":
		*to, err = x.word(t)
	case lang != "" && translated != nil && (*translated)[lang] == "":
		var s string
		if s, err = x.word(t); err == nil && s != "" {
			if *translated == nil {
				*translated = map[string]string{}
			}
			(*translated)[lang] = s
		}
	}
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

// optionIDs reads the list of groups offered with an environment.
func (x *scanner) optionIDs(t tag, g *CompsEnvironment) error {
	return x.children(t, func(t tag) error {
		if string(t.name) != "groupid" {
			return nil
		}
		chosen, err := t.attr("default")
		if err != nil {
			return err
		}
		s, err := x.word(t)
		g.Options = append(g.Options, s)
		if chosen == "true" {
			g.Chosen = append(g.Chosen, s)
		}
		return err
	})
}

// MergeComps makes one comps.xml of several. Of groups, categories and environments of one id,
// the earlier one's texts and flags count and the lists are joined; a package that two name
// keeps the earlier one's type.
func MergeComps(all ...Comps) (out Comps) {
	// What is there already: repositories may name a thing any number of times.
	seen := map[string]bool{}
	first := func(key ...string) bool {
		k := fmt.Sprintf("%q", key)
		defer func() { seen[k] = true }()
		return !seen[k]
	}
	more := func(a *map[string]string, b map[string]string) {
		if *a == nil && len(b) > 0 {
			*a = map[string]string{}
		}
		for lang, s := range b {
			if (*a)[lang] == "" {
				(*a)[lang] = s
			}
		}
	}
	texts := func(name, desc *string, order *int, t *CompsTexts, n, d string, o int, u CompsTexts) {
		*name, *desc, *order = cmp.Or(*name, n), cmp.Or(*desc, d), cmp.Or(*order, o)
		more(&t.Names, u.Names)
		more(&t.Descriptions, u.Descriptions)
	}
	groups, categories, environments := map[string]int{}, map[string]int{}, map[string]int{}
	for _, c := range all {
		for _, g := range c.Groups {
			i, ok := groups[g.ID]
			if !ok {
				i = len(out.Groups)
				groups[g.ID] = i
				out.Groups = append(out.Groups, CompsGroup{ID: g.ID, Default: g.Default, Visible: g.Visible, BiArchOnly: g.BiArchOnly})
			}
			to := &out.Groups[i]
			texts(&to.Name, &to.Description, &to.Order, &to.CompsTexts, g.Name, g.Description, g.Order, g.CompsTexts)
			for _, p := range g.Packages {
				if first("package", g.ID, p.Name) {
					to.Packages = append(to.Packages, p)
				}
			}
		}
		for _, g := range c.Categories {
			i, ok := categories[g.ID]
			if !ok {
				i = len(out.Categories)
				categories[g.ID] = i
				out.Categories = append(out.Categories, CompsCategory{ID: g.ID})
			}
			to := &out.Categories[i]
			texts(&to.Name, &to.Description, &to.Order, &to.CompsTexts, g.Name, g.Description, g.Order, g.CompsTexts)
			for _, id := range g.Groups {
				if first("category", g.ID, id) {
					to.Groups = append(to.Groups, id)
				}
			}
		}
		for _, g := range c.Environments {
			i, ok := environments[g.ID]
			if !ok {
				i = len(out.Environments)
				environments[g.ID] = i
				out.Environments = append(out.Environments, CompsEnvironment{ID: g.ID})
			}
			to := &out.Environments[i]
			texts(&to.Name, &to.Description, &to.Order, &to.CompsTexts, g.Name, g.Description, g.Order, g.CompsTexts)
			for _, id := range g.Groups {
				if first("environment", g.ID, id) {
					to.Groups = append(to.Groups, id)
				}
			}
			chosen := map[string]bool{}
			for _, id := range g.Chosen {
				chosen[id] = true
			}
			for _, id := range g.Options {
				if !first("environment", g.ID, id) {
					continue
				}
				to.Options = append(to.Options, id)
				if chosen[id] {
					to.Chosen = append(to.Chosen, id)
				}
			}
		}
		for _, l := range c.LangPacks {
			if first("langpack", l.Name) {
				out.LangPacks = append(out.LangPacks, l)
			}
		}
		for _, l := range c.Blacklist {
			if first("blacklist", l.Name, l.Arch) {
				out.Blacklist = append(out.Blacklist, l)
			}
		}
		for _, l := range c.Whitelist {
			if first("whitelist", l.Package, l.Requires) {
				out.Whitelist = append(out.Whitelist, l)
			}
		}
	}
	return out
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
	translated := func(name string, by map[string]string) {
		for _, lang := range slices.Sorted(maps.Keys(by)) {
			b = attr(append(append(b, "    <"...), name...), "xml:lang", []byte(lang))
			b = escape(append(b, '>'), []byte(by[lang]), false)
			b = append(append(append(b, "</"...), name...), ">\n"...)
		}
	}
	names := func(id, name, desc string, t CompsTexts) {
		text(2, "id", id)
		text(2, "name", name)
		translated("name", t.Names)
		text(2, "description", desc)
		translated("description", t.Descriptions)
	}
	for _, g := range slices.SortedStableFunc(slices.Values(c.Groups), func(a, b CompsGroup) int { return strings.Compare(a.ID, b.ID) }) {
		open(1, "group")
		names(g.ID, g.Name, g.Description, g.CompsTexts)
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
		names(g.ID, g.Name, g.Description, g.CompsTexts)
		order(g.Order)
		list("grouplist", g.Groups)
		open(1, "/category")
	}
	for _, g := range slices.SortedStableFunc(slices.Values(c.Environments), func(a, b CompsEnvironment) int { return strings.Compare(a.ID, b.ID) }) {
		open(1, "environment")
		names(g.ID, g.Name, g.Description, g.CompsTexts)
		order(g.Order)
		list("grouplist", g.Groups)
		open(2, "optionlist")
		chosen := map[string]bool{}
		for _, id := range g.Chosen {
			chosen[id] = true
		}
		for _, id := range g.Options {
			b = append(b, "      <groupid"...)
			if chosen[id] {
				b = attr(b, "default", []byte("true"))
			}
			b = append(escape(append(b, '>'), []byte(id), false), "</groupid>\n"...)
		}
		open(2, "/optionlist")
		open(1, "/environment")
	}
	lines := func(name, line string, attrs [][2][2]string) {
		if len(attrs) == 0 {
			return
		}
		slices.SortFunc(attrs, func(a, b [2][2]string) int {
			return cmp.Or(strings.Compare(a[0][1], b[0][1]), strings.Compare(a[1][1], b[1][1]))
		})
		open(1, name)
		for _, l := range slices.Compact(attrs) {
			b = append(b, "    <"+line...)
			for _, a := range l {
				b = attr(b, a[0], []byte(a[1]))
			}
			b = append(b, "/>\n"...)
		}
		open(1, "/"+name)
	}
	var langs, blacks, whites [][2][2]string
	for _, l := range c.LangPacks {
		langs = append(langs, [2][2]string{{"name", l.Name}, {"install", l.Install}})
	}
	for _, l := range c.Blacklist {
		blacks = append(blacks, [2][2]string{{"name", l.Name}, {"arch", l.Arch}})
	}
	for _, l := range c.Whitelist {
		whites = append(whites, [2][2]string{{"package", l.Package}, {"requires", l.Requires}})
	}
	lines("langpacks", "match", langs)
	lines("blacklist", "package", blacks)
	lines("whitelist", "ignoredep", whites)
	return append(b, "</comps>\n"...)
}
