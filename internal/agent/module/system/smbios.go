package system

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

// smbiosKeys are dmidecode's keywords and the files of /sys/class/dmi/id.
var smbiosKeys = map[string]string{
	"bios-vendor": "bios_vendor", "bios-version": "bios_version", "bios-release-date": "bios_date", "bios-revision": "bios_release", "firmware-revision": "ec_firmware_release",
	"system-manufacturer": "sys_vendor", "system-product-name": "product_name", "system-version": "product_version", "system-serial-number": "product_serial",
	"system-uuid": "product_uuid", "system-sku-number": "product_sku", "system-family": "product_family",
	"baseboard-manufacturer": "board_vendor", "baseboard-product-name": "board_name", "baseboard-version": "board_version", "baseboard-serial-number": "board_serial", "baseboard-asset-tag": "board_asset_tag",
	"chassis-manufacturer": "chassis_vendor", "chassis-type": "chassis_type", "chassis-version": "chassis_version", "chassis-serial-number": "chassis_serial", "chassis-asset-tag": "chassis_asset_tag",
}

func (m *machine) smbios() []module.Function {
	clean := module.May("clean", module.Bool, true)
	return []module.Function{
		module.Reads("smbios.get", "Tells one thing of the firmware's tables by dmidecode's keyword.\n\nsalt '*' smbios.get system-uuid", m.smbiosGet, module.Need("string", module.Str), clean),
		module.Reads("smbios.records", "Lists the records of the firmware's tables, of a type and with fields if wanted.\n\nsalt '*' smbios.records 4 core_count,thread_count", m.smbiosRecords,
			module.May("rec_type", module.Any, nil), module.May("fields", module.List, nil), clean),
	}
}

// meaningless finds what vendors leave in when they have nothing to say.
func meaningless(s string) bool {
	l := strings.ToLower(strings.TrimSpace(s))
	if l == "" || strings.Trim(l, "0 -.") == "" || strings.Trim(l, "f-") == "" && len(l) > 8 {
		return true
	}
	return slices.Contains([]string{"none", "n/a", "unknown", "not specified", "not available", "not applicable", "not present", "not provided", "default string", "system product name",
		"system serial number", "system manufacturer", "system version", "to be filled by o.e.m.", "to be filled by oem", "no asset tag", "no asset information", "asset-1234567890",
		"chassis serial number", "chassis manufacturer", "base board serial number", "123456789", "1234567890", "xxxxxxx", "o.e.m.", "oem", "undefined", "empty"}, l)
}

func (m *machine) smbiosGet(_ context.Context, c *module.Call) (any, error) {
	key := c.Str("string")
	if f, ok := smbiosKeys[key]; ok {
		s := m.text("/sys/class/dmi/id/" + f)
		if key == "chassis-type" {
			s = chassisTypes[s]
		}
		if s == "" || c.Bool("clean") && meaningless(s) {
			return nil, nil
		}
		return s, nil
	}
	if field, ok := strings.CutPrefix(key, "processor-"); ok {
		all, err := m.dmi()
		if err != nil {
			return nil, err
		}
		for _, r := range all {
			if r.kind != 4 {
				continue
			}
			if v, ok := r.data()[strings.ReplaceAll(field, "-", "_")]; ok && (!c.Bool("clean") || !meaningless(module.Text(v))) {
				return v, nil
			}
		}
		return nil, nil
	}
	return nil, fault.Invalid("bad_keyword", "the firmware's tables have no keyword %q", key).Fix("use one of `dmidecode -s`'s, such as system-uuid")
}

var chassisTypes = map[string]string{"1": "Other", "2": "Unknown", "3": "Desktop", "4": "Low Profile Desktop", "5": "Pizza Box", "6": "Mini Tower", "7": "Tower", "8": "Portable", "9": "Laptop",
	"10": "Notebook", "11": "Hand Held", "12": "Docking Station", "13": "All In One", "14": "Sub Notebook", "15": "Space-saving", "16": "Lunch Box", "17": "Main Server Chassis", "18": "Expansion Chassis",
	"19": "Sub Chassis", "20": "Bus Expansion Chassis", "21": "Peripheral Chassis", "22": "RAID Chassis", "23": "Rack Mount Chassis", "24": "Sealed-case PC", "25": "Multi-system", "26": "CompactPCI",
	"27": "AdvancedTCA", "28": "Blade", "29": "Blade Enclosing", "30": "Tablet", "31": "Convertible", "32": "Detachable", "33": "IoT Gateway", "34": "Embedded PC", "35": "Mini PC", "36": "Stick PC"}

// dmiRecord is a structure of the SMBIOS tables (DMTF DSP0134).
type dmiRecord struct {
	kind    byte
	handle  uint16
	bytes   []byte // with the header
	strings []string
}

var dmiNames = map[byte]string{0: "BIOS Information", 1: "System Information", 2: "Base Board Information", 3: "Chassis Information", 4: "Processor Information", 7: "Cache Information",
	8: "Port Connector Information", 9: "System Slot Information", 11: "OEM Strings", 12: "System Configuration Options", 13: "BIOS Language Information", 16: "Physical Memory Array",
	17: "Memory Device", 19: "Memory Array Mapped Address", 20: "Memory Device Mapped Address", 32: "System Boot Information", 38: "IPMI Device Information", 41: "Onboard Device", 43: "TPM Device",
	127: "End Of Table"}

const maxDMI = 1 << 20

// parseDMI reads the structures one after the other. It ends at the first that does not fit.
func parseDMI(b []byte) []dmiRecord {
	var out []dmiRecord
	for len(b) >= 4 {
		n := int(b[1])
		if n < 4 || n > len(b) {
			return out
		}
		r := dmiRecord{kind: b[0], handle: binary.LittleEndian.Uint16(b[2:]), bytes: b[:n]}
		b = b[n:]
		for {
			end := slices.Index(b, 0)
			if end < 0 {
				return append(out, r)
			}
			s := b[:end]
			b = b[end+1:]
			if len(s) == 0 {
				if len(r.strings) == 0 && len(b) > 0 && b[0] == 0 { // without strings there are two zeros
					b = b[1:]
				}
				break
			}
			r.strings = append(r.strings, module.Valid(strings.TrimSpace(string(s))))
		}
		out = append(out, r)
		if r.kind == 127 {
			return out
		}
	}
	return out
}

func (m *machine) dmi() ([]dmiRecord, error) {
	f, err := os.Open(m.path("/sys/firmware/dmi/tables/DMI"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Unavailable("dmi_missing", "the firmware of this host has no tables")
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxDMI))
	return parseDMI(b), err
}

// text is the string that the byte at an offset names.
func (r dmiRecord) text(at int) (string, bool) {
	if at >= len(r.bytes) {
		return "", false
	}
	i := int(r.bytes[at])
	if i == 0 || i > len(r.strings) {
		return "Not Specified", true
	}
	return r.strings[i-1], true
}

func (r dmiRecord) word(at int) (int, bool) {
	if at+2 > len(r.bytes) {
		return 0, false
	}
	return int(binary.LittleEndian.Uint16(r.bytes[at:])), true
}

// dmiStrings are the fields of a structure that name strings, by kind and offset.
var dmiStrings = map[byte]map[int]string{
	0:  {4: "vendor", 5: "version", 8: "release_date"},
	1:  {4: "manufacturer", 5: "product_name", 6: "version", 7: "serial_number", 0x19: "sku_number", 0x1a: "family"},
	2:  {4: "manufacturer", 5: "product_name", 6: "version", 7: "serial_number", 8: "asset_tag", 10: "location_in_chassis"},
	3:  {4: "manufacturer", 6: "version", 7: "serial_number", 8: "asset_tag"},
	4:  {4: "socket_designation", 7: "manufacturer", 0x10: "version", 0x20: "serial_number", 0x21: "asset_tag", 0x22: "part_number"},
	7:  {4: "socket_designation"},
	8:  {4: "internal_reference_designator", 6: "external_reference_designator"},
	9:  {4: "designation"},
	17: {0x10: "locator", 0x11: "bank_locator", 0x17: "manufacturer", 0x18: "serial_number", 0x19: "asset_tag", 0x1a: "part_number"},
	41: {4: "reference_designation"},
}

// data are the fields of a structure under dmidecode's names, in lower case as Salt has them.
func (r dmiRecord) data() map[string]any {
	d := map[string]any{}
	for at, name := range dmiStrings[r.kind] {
		if s, ok := r.text(at); ok {
			d[name] = s
		}
	}
	word := func(name string, at int, unit string) {
		if n, ok := r.word(at); ok {
			d[name] = strings.TrimSpace(fmt.Sprintf("%d %s", n, unit))
		}
	}
	count := func(name string, narrow, wide int) {
		if narrow >= len(r.bytes) {
			return
		}
		n := int(r.bytes[narrow])
		if w, ok := r.word(wide); ok && n == 0xff {
			n = w
		}
		d[name] = fmt.Sprint(n)
	}
	switch r.kind {
	case 0:
		if len(r.bytes) > 0x15 && r.bytes[0x14] != 0xff {
			d["bios_revision"] = fmt.Sprintf("%d.%d", r.bytes[0x14], r.bytes[0x15])
		}
	case 1:
		if len(r.bytes) >= 0x18 {
			u := r.bytes[8:0x18]
			d["uuid"] = fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(u), binary.LittleEndian.Uint16(u[4:]), binary.LittleEndian.Uint16(u[6:]), u[8:10], u[10:])
		}
	case 3:
		if len(r.bytes) > 5 {
			d["type"] = chassisTypes[fmt.Sprint(r.bytes[5]&0x7f)]
		}
	case 4:
		word("max_speed", 0x14, "MHz")
		word("current_speed", 0x16, "MHz")
		word("external_clock", 0x12, "MHz")
		count("core_count", 0x23, 0x2a)
		count("core_enabled", 0x24, 0x2c)
		count("thread_count", 0x25, 0x2e)
		if len(r.bytes) > 0x18 {
			d["status"] = "Unpopulated"
			if r.bytes[0x18]&0x40 != 0 {
				d["status"] = "Populated"
			}
		}
	case 11, 12:
		d["strings"] = r.strings
	case 16:
		word("number_of_devices", 13, "")
		if len(r.bytes) >= 11 {
			if k := binary.LittleEndian.Uint32(r.bytes[7:]); k != 0x80000000 {
				d["maximum_capacity"] = capacity(uint64(k))
			} else if len(r.bytes) >= 23 {
				d["maximum_capacity"] = capacity(binary.LittleEndian.Uint64(r.bytes[15:]) / 1024)
			}
		}
	case 17:
		if n, ok := r.word(12); ok {
			switch {
			case n == 0:
				d["size"] = "No Module Installed"
			case n == 0xffff:
				d["size"] = "Unknown"
			case n == 0x7fff && len(r.bytes) >= 32:
				d["size"] = capacity(uint64(binary.LittleEndian.Uint32(r.bytes[28:])&0x7fffffff) * 1024)
			case n&0x8000 != 0:
				d["size"] = capacity(uint64(n & 0x7fff))
			default:
				d["size"] = capacity(uint64(n) * 1024)
			}
		}
		word("total_width", 8, "bits")
		word("data_width", 10, "bits")
		word("speed", 0x15, "MT/s")
		word("configured_memory_speed", 0x20, "MT/s")
	default:
		if dmiStrings[r.kind] == nil && len(r.strings) > 0 {
			d["strings"] = r.strings
		}
	}
	return d
}

func capacity(kib uint64) string {
	units := []string{"kB", "MB", "GB", "TB", "PB"}
	i := 0
	for ; kib >= 1024 && kib%1024 == 0 && i < len(units)-1; i++ {
		kib /= 1024
	}
	return fmt.Sprintf("%d %s", kib, units[i])
}

func (m *machine) smbiosRecords(_ context.Context, c *module.Call) (any, error) {
	all, err := m.dmi()
	if err != nil {
		return nil, err
	}
	out := []any{}
	want := int64(-1)
	if v := c.Any("rec_type"); v != nil {
		want = number(sysctlValue(v))
	}
	for _, r := range all {
		if want >= 0 && int64(r.kind) != want || r.kind == 127 {
			continue
		}
		data := r.data()
		for k, v := range data {
			s, text := v.(string)
			if c.Has("fields") && !slices.Contains(c.Strs("fields"), k) || c.Bool("clean") && text && meaningless(s) {
				delete(data, k)
			}
		}
		if len(data) == 0 && (c.Has("fields") || c.Bool("clean")) {
			continue
		}
		name := dmiNames[r.kind]
		if name == "" {
			name = fmt.Sprintf("Type %d", r.kind)
		}
		out = append(out, map[string]any{"handle": fmt.Sprintf("0x%04x", r.handle), "type": int64(r.kind), "description": name, "desc": name, "data": data})
	}
	return out, nil
}
