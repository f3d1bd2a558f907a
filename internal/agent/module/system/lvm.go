package system

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

func (m *machine) lvm() []module.Function {
	quiet := module.May("quiet", module.Bool, false)
	devices := module.Need("devices", module.Any)
	override, force := module.May("override", module.Bool, true), module.May("force", module.Bool, false)
	lv := func(fn, doc string) module.Function {
		return module.Tests("lvm."+fn, doc+"\n\nsalt '*' lvm."+fn+" +10G /dev/vg/data", func(ctx context.Context, c *module.Call) (any, error) { return m.lvsize(ctx, c, fn) },
			module.May("size", module.Str, nil), module.Need("lvpath", module.Str), module.May("extents", module.Str, nil), force, module.May("resizefs", module.Bool, false))
	}
	return []module.Function{
		module.Reads("lvm.version", "Tells the version of LVM.\n\nsalt '*' lvm.version", func(ctx context.Context, _ *module.Call) (any, error) {
			v, err := m.lvmVersion(ctx)
			return v["LVM version"], err
		}),
		module.Reads("lvm.fullversion", "Tells the versions of LVM and its parts.\n\nsalt '*' lvm.fullversion", func(ctx context.Context, _ *module.Call) (any, error) { return m.lvmVersion(ctx) }),
		module.Reads("lvm.pvdisplay", "Shows the physical volumes.\n\nsalt '*' lvm.pvdisplay /dev/sdb", m.lvmDisplay("pvs", "pvname", pvColumns), module.May("pvname", module.Str, ""), module.May("real", module.Bool, false), quiet),
		module.Reads("lvm.vgdisplay", "Shows the volume groups.\n\nsalt '*' lvm.vgdisplay data", m.lvmDisplay("vgs", "vgname", vgColumns), module.May("vgname", module.Str, ""), quiet),
		module.Reads("lvm.lvdisplay", "Shows the logical volumes.\n\nsalt '*' lvm.lvdisplay /dev/data/srv", m.lvmDisplay("lvs", "lvname", lvColumns), module.May("lvname", module.Str, ""), quiet),
		module.Extra(module.Tests("lvm.pvcreate", "Makes devices physical volumes.\n\nsalt '*' lvm.pvcreate /dev/sdb1,/dev/sdb2", func(ctx context.Context, c *module.Call) (any, error) {
			return m.pvEach(ctx, c, "pvcreate", false, lvmKeywords(c, "metadatasize", "dataalignment", "dataalignmentoffset", "pvmetadatacopies", "metadatacopies", "metadataignore", "restorefile", "norestorefile", "labelsector", "setphysicalvolumesize"))
		}, devices, override, module.May("force", module.Bool, true))),
		module.Extra(module.Tests("lvm.pvremove", "Makes devices no longer physical volumes.\n\nsalt '*' lvm.pvremove /dev/sdb1", func(ctx context.Context, c *module.Call) (any, error) {
			return m.pvEach(ctx, c, "pvremove", true, nil)
		}, devices, override, module.May("force", module.Bool, true))),
		module.Tests("lvm.pvresize", "Lets physical volumes fill their devices.\n\nsalt '*' lvm.pvresize /dev/sdb1", func(ctx context.Context, c *module.Call) (any, error) {
			return m.pvEach(ctx, c, "pvresize", true, nil)
		}, devices, override, module.May("force", module.Bool, true)),
		module.Extra(module.Tests("lvm.vgcreate", "Makes a volume group.\n\nsalt '*' lvm.vgcreate data /dev/sdb1,/dev/sdb2", func(ctx context.Context, c *module.Call) (any, error) {
			return m.vgDevices(ctx, c, "vgcreate", lvmKeywords(c, "addtag", "alloc", "autobackup", "clustered", "maxlogicalvolumes", "maxphysicalvolumes", "metadatatype", "vgmetadatacopies", "metadatacopies", "physicalextentsize", "zero"))
		}, module.Need("vgname", module.Str), devices, force)),
		module.Tests("lvm.vgextend", "Adds physical volumes to a volume group.\n\nsalt '*' lvm.vgextend data /dev/sdc1", func(ctx context.Context, c *module.Call) (any, error) {
			return m.vgDevices(ctx, c, "vgextend", nil)
		}, module.Need("vgname", module.Str), devices, force),
		module.Tests("lvm.vgremove", "Removes a volume group. Everything on it is lost.\n\nsalt '*' lvm.vgremove data", func(ctx context.Context, c *module.Call) (any, error) {
			return m.lvmDo(ctx, c, "Removed Volume Group "+c.Str("vgname"), []string{"vgremove", "-f", "-y"}, c.Str("vgname"))
		}, module.Need("vgname", module.Str), module.May("force", module.Bool, true)),
		module.Extra(module.Tests("lvm.lvcreate", "Makes a logical volume.\n\nsalt '*' lvm.lvcreate srv data size=10G", m.lvcreate, module.Need("lvname", module.Str), module.Need("vgname", module.Str), module.May("size", module.Str, nil),
			module.May("extents", module.Str, nil), module.May("snapshot", module.Str, nil), module.May("pv", module.Str, nil), module.May("thinvolume", module.Bool, false), module.May("thinpool", module.Bool, false), force)),
		module.Tests("lvm.lvremove", "Removes a logical volume. Everything on it is lost.\n\nsalt '*' lvm.lvremove srv data", func(ctx context.Context, c *module.Call) (any, error) {
			if err := module.NoOption("logical volume", c.Str("lvname")); err != nil {
				return nil, err
			}
			return m.lvmDo(ctx, c, "Logical Volume "+c.Str("lvname")+" successfully removed.", []string{"lvremove", "-f", "-y"}, c.Str("vgname")+"/"+c.Str("lvname"))
		}, module.Need("lvname", module.Str), module.Need("vgname", module.Str), module.May("force", module.Bool, true)),
		lv("lvresize", "Sets the size of a logical volume."),
		lv("lvextend", "Makes a logical volume larger."),
	}
}

func (m *machine) lvmVersion(ctx context.Context) (map[string]any, error) {
	text, err := m.must(ctx, "lvm", "version")
	out := map[string]any{}
	for _, l := range module.Lines(text) {
		if k, v, ok := strings.Cut(l, ":"); ok {
			out[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	return out, err
}

// column is a field of LVM's reports under the name that Salt gives it.
type column struct{ field, name string }

var pvColumns = []column{{"pv_name", "Physical Volume Device"}, {"vg_name", "Volume Group Name"}, {"pv_size", "Physical Volume Size (kB)"}, {"pv_allocatable", "Physical Volume Not Allocatable"},
	{"pv_pe_count", "Total Physical Extents"}, {"pv_free_count", "Free Physical Extents"}, {"pv_alloc_count", "Allocated Physical Extents"}, {"pv_uuid", "UUID"},
	{"vg_extent_size", "Physical Extent Size (kB)"}, {"lv_count", "Current Logical Volumes Here"}}

var vgColumns = []column{{"vg_name", "Volume Group Name"}, {"vg_permissions", "Volume Group Access"}, {"vg_attr", "Volume Group Status"}, {"vg_seqno", "Internal Volume Group Number"},
	{"max_lv", "Maximum Logical Volumes"}, {"lv_count", "Current Logical Volumes"}, {"max_pv", "Maximum Physical Volumes"}, {"pv_count", "Current Physical Volumes"},
	{"vg_size", "Volume Group Size (kB)"}, {"vg_extent_size", "Physical Extent Size (kB)"}, {"vg_extent_count", "Total Physical Extents"},
	{"vg_allocated_count", "Allocated Physical Extents"}, {"vg_free_count", "Free Physical Extents"}, {"vg_uuid", "UUID"}}

var lvColumns = []column{{"lv_path", "Logical Volume Name"}, {"vg_name", "Volume Group Name"}, {"lv_permissions", "Logical Volume Access"}, {"lv_active", "Logical Volume Status"},
	{"lv_kernel_minor", "Internal Logical Volume Number"}, {"lv_device_open", "Open Logical Volumes"}, {"lv_size", "Logical Volume Size"}, {"seg_count", "Current Logical Extents Associated"},
	{"lv_allocation_policy", "Allocation Policy of Logical Volume"}, {"lv_read_ahead", "Read Ahead Sectors"}, {"lv_kernel_major", "Major Device Number"}, {"pool_lv", "Pool"}, {"lv_uuid", "UUID"}}

// reportFields are those that are asked of LVM for the columns; some columns are worked out.
var reportFields = map[string]string{
	"pvs": "pv_name,vg_name,pv_size,pv_allocatable,pv_pe_count,pv_pe_alloc_count,pv_uuid,vg_extent_size",
	"vgs": "vg_name,vg_permissions,vg_attr,vg_seqno,max_lv,lv_count,max_pv,pv_count,vg_size,vg_extent_size,vg_extent_count,vg_free_count,vg_uuid",
	"lvs": "lv_full_name,lv_path,vg_name,lv_permissions,lv_active,lv_kernel_minor,lv_kernel_major,lv_device_open,lv_size,seg_count,lv_allocation_policy,lv_read_ahead,pool_lv,lv_uuid,vg_extent_size",
}

// parseReport reads `--reportformat json`.
func parseReport(text string) ([]map[string]string, error) {
	var r struct {
		Report []map[string][]map[string]any `json:"report"`
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return nil, fault.Unavailable("lvm_unreadable", "LVM's report cannot be read").Wrap(err)
	}
	var out []map[string]string
	for _, part := range r.Report {
		for _, rows := range part {
			for _, row := range rows {
				s := map[string]string{}
				for k, v := range row {
					s[k] = module.Text(v)
				}
				out = append(out, s)
			}
		}
	}
	return out, nil
}

func (m *machine) lvmDisplay(verb, arg string, columns []column) func(context.Context, *module.Call) (any, error) {
	return func(ctx context.Context, c *module.Call) (any, error) {
		argv := []string{"lvm", verb, "--reportformat", "json", "--units", "s", "--nosuffix", "-o", reportFields[verb]}
		if n := c.Str(arg); n != "" {
			if err := module.NoOption("volume", n); err != nil {
				return nil, err
			}
			argv = append(argv, n)
		}
		o, err := m.run(ctx, argv...)
		if err != nil {
			return nil, err
		}
		if o.Code != 0 {
			if c.Bool("quiet") || strings.Contains(o.Err, "ailed to find") || strings.Contains(o.Err, "not found") {
				return map[string]any{}, nil
			}
			return nil, failed(argv, o)
		}
		rows, err := parseReport(o.Out)
		if err != nil {
			return nil, err
		}
		out := map[string]any{}
		for _, r := range rows {
			derive(verb, r)
			row := map[string]any{}
			for _, col := range columns {
				if v, ok := r[col.field]; ok {
					row[col.name] = v
				}
			}
			key := r[columns[0].field]
			if key == "" {
				key = r["lv_full_name"] // a thin pool has no device
			}
			out[key] = row
		}
		return out, nil
	}
}

// derive works out what the old display programs print. Sectors of 512 bytes become KiB where
// Salt's key says so.
func derive(verb string, r map[string]string) {
	kib := func(k string) { r[k] = fmt.Sprint(number(r[k]) / 2) }
	switch verb {
	case "pvs":
		r["pv_free_count"], r["pv_alloc_count"] = fmt.Sprint(number(r["pv_pe_count"])-number(r["pv_pe_alloc_count"])), r["pv_pe_alloc_count"]
		kib("pv_size")
		kib("vg_extent_size")
	case "vgs":
		r["vg_allocated_count"] = fmt.Sprint(number(r["vg_extent_count"]) - number(r["vg_free_count"]))
		kib("vg_size")
		kib("vg_extent_size")
	case "lvs":
		if size := number(r["vg_extent_size"]); size > 0 {
			r["seg_count"] = fmt.Sprint(number(r["lv_size"]) / size) // the extents, as lvdisplay's column has them
		}
	}
}

// lvmKeywords are the options that Salt passes on, as LVM spells them.
func lvmKeywords(c *module.Call, known ...string) []string {
	var out []string
	for _, k := range known {
		switch v := c.Extra[k]; v {
		case nil, false:
		case true:
			out = append(out, "--"+k)
		default:
			out = append(out, "--"+k+"="+sysctlValue(v))
		}
	}
	return out
}

func deviceList(c *module.Call) ([]string, error) {
	var out []string
	switch v := c.Any("devices").(type) {
	case []any:
		for _, d := range v {
			out = append(out, module.Text(d))
		}
	default:
		for _, d := range strings.Split(module.Text(v), ",") {
			if d = strings.TrimSpace(d); d != "" {
				out = append(out, d)
			}
		}
	}
	if len(out) == 0 {
		return nil, fault.Invalid("argument", "no device is named")
	}
	for _, d := range out {
		if err := module.NoOption("device", d); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// isPV tells whether LVM knows a device as a physical volume.
func (m *machine) isPV(ctx context.Context, device string) (bool, error) {
	o, err := m.run(ctx, "lvm", "pvs", "--reportformat", "json", "-o", "pv_name", device)
	if err != nil || o.Code != 0 {
		return false, err
	}
	rows, err := parseReport(o.Out)
	return len(rows) > 0, err
}

// pvEach runs a program for those devices that are, or are not yet, physical volumes.
func (m *machine) pvEach(ctx context.Context, c *module.Call, verb string, wantPV bool, more []string) (any, error) {
	all, err := deviceList(c)
	if err != nil {
		return nil, err
	}
	var todo []string
	for _, d := range all {
		is, err := m.isPV(ctx, d)
		if err != nil {
			return nil, err
		}
		switch {
		case is == wantPV:
			todo = append(todo, d)
		case !c.Bool("override"):
			if wantPV {
				return nil, fault.NotFound("pv_missing", "%s is not a physical volume", d)
			}
			return nil, fault.Conflict("pv_there", "%s is a physical volume already", d)
		}
	}
	if len(todo) == 0 || c.Test {
		return true, nil
	}
	argv := []string{"lvm", verb}
	if verb != "pvresize" {
		argv = append(argv, "-y")
		if c.Bool("force") && verb == "pvcreate" {
			argv = append(argv, "-f")
		}
	}
	_, err = m.must(ctx, append(append(argv, more...), todo...)...)
	return err == nil, err
}

// lvmDo runs a program that makes or ends one volume, and shows the volume with what it said.
func (m *machine) lvmDo(ctx context.Context, c *module.Call, told string, argv []string, names ...string) (any, error) {
	for _, n := range names {
		if err := module.NoOption("volume", n); err != nil {
			return nil, err
		}
	}
	if c.Test {
		return told, nil
	}
	_, err := m.must(ctx, append(append([]string{"lvm"}, argv...), names...)...)
	return told, err
}

func (m *machine) vgDevices(ctx context.Context, c *module.Call, verb string, more []string) (any, error) {
	all, err := deviceList(c)
	if err != nil {
		return nil, err
	}
	vg := c.Str("vgname")
	told := map[string]string{"vgcreate": fmt.Sprintf("Volume group %q successfully created", vg), "vgextend": fmt.Sprintf("Volume group %q successfully extended", vg)}[verb]
	argv := []string{verb}
	if c.Bool("force") {
		argv = append(argv, "-f", "-y")
	}
	if _, err := m.lvmDo(ctx, c, told, append(argv, more...), append([]string{vg}, all...)...); err != nil || c.Test {
		return map[string]any{"Output from " + verb: told}, err
	}
	shown, err := m.lvmDisplay("vgs", "vg", vgColumns)(ctx, c)
	if err != nil {
		return nil, err
	}
	return map[string]any{vg: shown.(map[string]any)[vg], "Output from " + verb: told}, nil
}

func (m *machine) lvcreate(ctx context.Context, c *module.Call) (any, error) {
	lv, vg := c.Str("lvname"), c.Str("vgname")
	if c.Has("size") == c.Has("extents") && !c.Has("snapshot") {
		return nil, fault.Invalid("argument", "lvm.lvcreate needs either size or extents")
	}
	if c.Bool("thinvolume") && c.Bool("thinpool") {
		return nil, fault.Invalid("argument", "lvm.lvcreate makes a thinvolume or a thinpool, not both")
	}
	size := []string{"-L", c.Str("size")}
	if c.Bool("thinvolume") {
		size[0] = "-V"
	}
	if c.Has("extents") {
		size = []string{"-l", c.Str("extents")}
	}
	if strings.HasPrefix(size[1], "-") {
		return nil, fault.Invalid("bad_size", "%q is not a size", size[1])
	}
	argv := append([]string{"lvcreate", "-y"}, lvmKeywords(c, "activate", "available", "autobackup", "chunksize", "contiguous", "discards", "stripes", "stripesize", "mirrors", "minor", "persistent",
		"nosync", "noudevsync", "monitor", "ignoremonitoring", "permission", "poolmetadatasize", "readahead", "regionsize", "type", "zero", "addtag", "wipesignatures")...)
	argv = append(argv, size...)
	var names []string
	switch {
	case c.Bool("thinvolume"):
		argv, names = append(argv, "--thin", "-n", lv), []string{vg}
	case c.Bool("thinpool"):
		argv, names = append(argv, "--thinpool", lv), []string{vg}
	case c.Has("snapshot"):
		argv, names = append(argv, "-s", "-n", lv), []string{vg + "/" + c.Str("snapshot")}
	default:
		argv, names = append(argv, "-n", lv), []string{vg}
	}
	if err := module.NoOption("logical volume", lv); err != nil {
		return nil, err
	}
	if pv := c.Str("pv"); pv != "" {
		names = append(names, pv)
	}
	if c.Bool("force") {
		argv = slices.Insert(argv, 2, "--wipesignatures", "y")
	}
	told := fmt.Sprintf("Logical volume %q created.", lv)
	if _, err := m.lvmDo(ctx, c, told, argv, names...); err != nil || c.Test {
		return map[string]any{"Output from lvcreate": told}, err
	}
	shown, err := m.lvmDisplay("lvs", "lv", lvColumns)(ctx, c)
	if err != nil {
		return nil, err
	}
	path := "/dev/" + vg + "/" + lv
	return map[string]any{path: shown.(map[string]any)[path], "Output from lvcreate": told}, nil
}

func (m *machine) lvsize(ctx context.Context, c *module.Call, verb string) (any, error) {
	if c.Has("size") == c.Has("extents") {
		return nil, fault.Invalid("argument", "lvm.%s needs either size or extents", verb)
	}
	argv := []string{verb}
	if c.Bool("force") {
		argv = append(argv, "-f", "-y")
	}
	if c.Bool("resizefs") {
		argv = append(argv, "-r")
	}
	flag, v := "-L", c.Str("size")
	if c.Has("extents") {
		flag, v = "-l", c.Str("extents")
	}
	if strings.Trim(v, "0123456789.+-%bBsSkKmMgGtTpPeEVFRLION") != "" || v == "" {
		return nil, fault.Invalid("bad_size", "%q is not a size", v)
	}
	told, err := m.lvmDo(ctx, c, fmt.Sprintf("Logical volume %s successfully resized.", c.Str("lvpath")), append(argv, flag, v), c.Str("lvpath"))
	if err != nil && strings.Contains(err.Error(), "matches existing size") {
		return map[string]any{}, nil // it has the size that is wanted
	}
	return map[string]any{"Output from " + verb: told}, err
}
