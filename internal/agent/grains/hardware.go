package grains

import (
	"context"
	"path"
	"slices"
	"strings"
)

// maxDevices bounds lists of devices.
const maxDevices = 2000

func hardware(_ context.Context, h *host, _ Config, g map[string]any) error {
	info := map[string]string{}
	count := int64(0)
	for l := range strings.Lines(h.text("proc/cpuinfo")) {
		k, v, ok := strings.Cut(l, ":")
		if !ok {
			continue
		}
		k, v = strings.TrimSpace(k), strings.TrimSpace(v)
		if k == "processor" {
			count++
		}
		if _, ok := info[k]; !ok { // of the first one; the others are alike
			info[k] = v
		}
	}
	if n := cpuList(h.line("sys/devices/system/cpu/online")); n > 0 {
		count = n // what is read of cpuinfo may end before the last of very many
	}
	g["num_cpus"] = count
	model, flags := "Unknown", "" // Salt's word
	for _, k := range []string{"Hardware", "cpu", "Processor", "vendor_id", "model name"} {
		if v := info[k]; v != "" && (k != "vendor_id" || strings.HasPrefix(v, "IBM/")) {
			model = v
		}
	}
	for _, k := range []string{"flags", "Features", "features"} {
		if info[k] != "" {
			flags = info[k]
		}
	}
	g["cpu_model"], g["cpu_flags"] = model, texts(strings.Fields(flags))

	mem := map[string]int64{}
	for l := range strings.Lines(h.text("proc/meminfo")) {
		k, v, _ := strings.Cut(l, ":")
		if n, ok := number(strings.TrimSpace(v)); ok {
			mem[k] = n
		}
	}
	g["mem_total"], g["swap_total"] = mem["MemTotal"]/1024, mem["SwapTotal"]/1024

	disks, ssds := []string{}, []string{}
	for i, n := range h.names("sys/block") {
		if i == maxDevices {
			break
		}
		switch h.line(path.Join("sys/block", n, "queue/rotational")) {
		case "0":
			ssds = append(ssds, n)
		case "1":
			disks = append(disks, n)
		}
	}
	g["disks"], g["ssds"] = texts(disks), texts(ssds)
	arrays := []string{}
	for l := range strings.Lines(h.text("proc/mdstat")) {
		if name, rest, ok := strings.Cut(l, " : "); ok && strings.HasPrefix(rest, "active") {
			arrays = append(arrays, name)
		}
	}
	g["mdadm"] = texts(arrays)
	for l := range strings.Lines(h.text("etc/iscsi/initiatorname.iscsi")) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(l), "InitiatorName="); ok {
			list, _ := g["iscsi_iqn"].([]any)
			g["iscsi_iqn"] = append(list, v)
		}
	}

	gpus := []any{}
	for i, n := range h.names("sys/bus/pci/devices") {
		dir := path.Join("sys/bus/pci/devices", n)
		if i == maxDevices {
			break
		}
		if !strings.HasPrefix(h.line(path.Join(dir, "class")), "0x03") {
			continue
		}
		vendor, device := strings.TrimPrefix(h.line(path.Join(dir, "vendor")), "0x"), strings.TrimPrefix(h.line(path.Join(dir, "device")), "0x")
		gpus = append(gpus, map[string]any{"vendor": gpuVendor(vendor), "model": vendor + ":" + device})
	}
	g["gpus"], g["num_gpus"] = gpus, int64(len(gpus))

	h.firmware(g)
	kind, sub := h.virtual(info, g)
	g["virtual"] = kind
	if sub != "" {
		g["virtual_subtype"] = sub
	}
	return nil
}

// cpuList counts a list of processors as the kernel writes it: "0-3,8".
func cpuList(s string) (n int64) {
	for part := range strings.SplitSeq(s, ",") {
		from, to, ok := strings.Cut(part, "-")
		a, okA := number(from)
		b, okB := number(to)
		switch {
		case !okA:
		case !ok:
			n++
		case okB && b >= a && b < 1<<20:
			n += b - a + 1
		}
	}
	return n
}

// gpuVendor is Salt's name of a vendor on the PCI bus.
func gpuVendor(id string) string {
	switch id {
	case "10de", "12d2":
		return "nvidia"
	case "1002", "1022":
		return "amd"
	case "8086":
		return "intel"
	case "1013":
		return "cirrus logic"
	case "15ad":
		return "vmware"
	case "102b":
		return "matrox"
	case "1a03":
		return "aspeed"
	case "1234", "1b36", "1af4":
		return "qemu"
	}
	return "unknown"
}

// firmware tells what the maker wrote into the machine. Machines without SMBIOS tell the model in
// their device tree.
func (h *host) firmware(g map[string]any) {
	for fact, file := range map[string]string{
		"biosvendor": "bios_vendor", "biosversion": "bios_version", "biosreleasedate": "bios_date",
		"manufacturer": "sys_vendor", "productname": "product_name", "serialnumber": "product_serial", "uuid": "product_uuid",
		"boardmanufacturer": "board_vendor", "boardname": "board_name", "boardserialnumber": "board_serial", "chassis_serialnumber": "chassis_serial",
	} {
		if v := h.line("sys/class/dmi/id/" + file); v != "" {
			g[fact] = v
		}
	}
	if u, ok := g["uuid"].(string); ok {
		g["uuid"] = strings.ToLower(u)
	}
	for fact, file := range map[string]string{"productname": "model", "serialnumber": "serial-number"} {
		if v := h.line("proc/device-tree/" + file); v != "" && g[fact] == nil {
			g[fact] = v
		}
	}
}

// virtual tells on what the host runs, in Salt's words.
func (h *host) virtual(cpu map[string]string, g map[string]any) (kind, sub string) {
	if s := h.container(); s != "" {
		return "container", s
	}
	vendor, _ := g["manufacturer"].(string)
	product, _ := g["productname"].(string)
	bios, _ := g["biosvendor"].(string)
	board, _ := g["boardmanufacturer"].(string)
	has := func(in string, words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(strings.ToLower(in), w) })
	}
	guest := slices.Contains(strings.Fields(cpu["flags"]), "hypervisor")
	switch {
	case h.line("sys/hypervisor/type") == "xen":
		switch caps := h.line("proc/xen/capabilities"); {
		case strings.Contains(caps, "control_d"):
			return "xen", "Xen Dom0"
		case has(vendor, "amazon") || has(bios, "amazon"):
			return "xen", "Amazon EC2"
		case has(product, "hvm"):
			return "xen", "Xen HVM DomU"
		}
		return "xen", "Xen PV DomU"
	case has(vendor, "vmware") || has(product, "vmware"):
		return "VMware", ""
	case has(product, "virtualbox") || has(bios, "innotek"):
		return "VirtualBox", ""
	case has(vendor, "microsoft") && has(product, "virtual machine"):
		return "HyperV", ""
	case has(vendor, "parallels"):
		return "Parallels", ""
	case has(vendor, "google") && has(product, "google compute engine"):
		return "gce", ""
	case has(vendor, "amazon ec2"):
		if has(product, ".metal") {
			return "physical", "Amazon EC2"
		}
		return "kvm", "Amazon EC2"
	case has(vendor, "nutanix"):
		return "kvm", "Nutanix AHV"
	case has(vendor, "openstack") || has(product, "openstack"):
		return "kvm", "OpenStack"
	case has(product, "ovirt", "rhev", "rhel", "kvm") || has(vendor, "ovirt", "red hat", "kubevirt") && guest:
		return "kvm", ""
	case has(vendor, "qemu", "bochs") || has(bios, "seabios", "edk ii") && guest || has(board, "qemu"):
		if has(cpu["model name"], "qemu tcg") {
			return "qemu", ""
		}
		return "kvm", ""
	case has(vendor, "bhyve") || has(product, "bhyve"):
		return "bhyve", ""
	case has(cpu["vendor_id"], "ibm/s390"):
		for l := range strings.Lines(h.text("proc/sysinfo")) {
			if k, v, ok := strings.Cut(l, ":"); ok && strings.HasSuffix(strings.TrimSpace(k), "Control Program") {
				if has(v, "kvm") {
					return "kvm", "s390x"
				}
				return "zvm", "s390x"
			}
		}
		return "LPAR", "s390x"
	case has(h.line("proc/device-tree/compatible"), "qemu") || has(h.line("proc/device-tree/hypervisor/compatible"), "kvm"):
		return "kvm", ""
	case guest: // by a hypervisor without firmware to tell its name, such as Firecracker
		return "kvm", ""
	}
	return "physical", ""
}

// container tells in what kind of container the host is, "" when it is none.
func (h *host) container() string {
	name := h.line("run/systemd/container")
	if name == "" {
		for v := range strings.SplitSeq(h.text("proc/1/environ"), "\x00") {
			if c, ok := strings.CutPrefix(v, "container="); ok {
				name = c
			}
		}
	}
	cgroup := h.text("proc/1/cgroup")
	switch {
	case name == "podman" || name == "oci" && h.exists("run/.containerenv") || h.exists("run/.containerenv"):
		return "podman"
	case name == "docker" || h.exists(".dockerenv") || strings.Contains(cgroup, "/docker/") || strings.Contains(cgroup, "/docker-"):
		return "Docker"
	case name == "lxc" || name == "lxc-libvirt" || strings.Contains(cgroup, "/lxc/") || strings.Contains(cgroup, "/lxc.payload"):
		return "LXC"
	case name == "systemd-nspawn":
		return "systemd-nspawn"
	case strings.Contains(cgroup, "/kubepods"):
		return "kubernetes"
	case h.exists("proc/vz") && !h.exists("proc/bc"):
		return "OpenVZ"
	}
	return name
}
