package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
)

// backupTime is how Salt writes the time of a backup into its name.
const backupTime = "Mon_Jan_02_15:04:05.000000_2006"

func backups() []module.Function {
	p, id := module.Need("path", module.Str), module.Need("backup_id", module.Any)
	return []module.Function{
		module.Reads("file.list_backups", "Lists the backups of a file, the newest first.\n\nsalt '*' file.list_backups /etc/hosts", on("path", func(f string, c *module.Call) (any, error) {
			all, err := backupsOf(c, f)
			if n := int(c.Int("limit")); c.Has("limit") && n >= 0 && n < len(all) {
				all = all[:n]
			}
			out := map[string]any{}
			for i, b := range all {
				out[strconv.Itoa(i)] = b.dict()
			}
			return out, err
		}), p, module.May("limit", module.Int, nil)),
		module.Tests("file.backup", "Keeps a backup of a file, as a state with backup=minion does.\n\nsalt '*' file.backup /etc/hosts", on("path", func(f string, c *module.Call) (any, error) {
			if c.Test {
				return backupDir(c, f)
			}
			return keepBackup(c, f)
		}), p),
		module.Tests("file.restore_backup", "Puts a backup of a file back in place; what is there becomes a backup.\n\nsalt '*' file.restore_backup /etc/hosts 0", on("path", restoreBackup), p, id),
		module.Tests("file.delete_backup", "Removes a backup of a file.\n\nsalt '*' file.delete_backup /etc/hosts 0", on("path", deleteBackup), p, id),
		module.Tests("file.remove_backup", "Removes a backup of a file.\n\nsalt '*' file.remove_backup /etc/hosts 0", on("path", deleteBackup), p, id),
	}
}

// kept file of an earlier time.
type backup struct {
	at   time.Time
	file string
	size int64
}

func (b backup) dict() map[string]any {
	return map[string]any{"Backup Time": b.at.Format("Mon Jan 02 2006 15:04:05.000000"), "Location": module.Valid(b.file), "Size": b.size}
}

// backupDir is where the backups of a file are: below the agent's cache, as in Salt.
func backupDir(c *module.Call, p string) (string, error) {
	dir, err := cacheDir(c)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "file_backup", filepath.Dir(p)), nil
}

// keepBackup copies a file to its backups.
func keepBackup(c *module.Call, p string) (string, error) {
	dir, err := backupDir(c, p)
	if err != nil {
		return "", err
	}
	b, err := load(p)
	if err != nil {
		return "", err
	}
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return "", failed("made", dir, err)
	}
	to := filepath.Join(dir, filepath.Base(p)+"_"+strings.Replace(time.Now().Format(backupTime), ".", "_", 1))
	return to, copyOver(p, to, b)
}

func backupsOf(c *module.Call, p string) ([]backup, error) {
	dir, err := backupDir(c, p)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, failed("read", dir, err)
	}
	var out []backup
	for _, e := range entries {
		stamp, ok := strings.CutPrefix(e.Name(), filepath.Base(p)+"_")
		if !ok {
			continue
		}
		if i := strings.LastIndexByte(stamp, '_'); i > 7 && stamp[i-7] == '_' {
			stamp = stamp[:i-7] + "." + stamp[i-6:]
		}
		at, err := time.ParseInLocation(backupTime, stamp, time.Local)
		if err != nil {
			continue // of another file whose name begins alike
		}
		if i, err := e.Info(); err == nil {
			out = append(out, backup{at, filepath.Join(dir, e.Name()), i.Size()})
		}
	}
	slices.SortFunc(out, func(a, b backup) int { return b.at.Compare(a.at) })
	return out, nil
}

// backupBy finds a backup by its number in the list.
func backupBy(c *module.Call, p string) (backup, string, error) {
	id := module.Plain(c.Any("backup_id"))
	n, err := strconv.Atoi(id)
	if err != nil {
		return backup{}, "", fault.Invalid("backup_bad", "backup_id %q is not a number", id)
	}
	all, err := backupsOf(c, p)
	if err != nil {
		return backup{}, "", err
	}
	if n < 0 || n >= len(all) {
		return backup{}, fmt.Sprintf("backup_id '%d' does not exist for %s", n, p), nil
	}
	return all[n], "", nil
}

func restoreBackup(p string, c *module.Call) (any, error) {
	b, none, err := backupBy(c, p)
	if err != nil {
		return nil, err
	}
	if none != "" {
		c.RC = 1
		return map[string]any{"result": false, "comment": none}, nil
	}
	done := map[string]any{"result": true, "comment": fmt.Sprintf("Successfully restored %s to %s", b.file, p)}
	if c.Test {
		return done, nil
	}
	data, err := load(b.file)
	if err != nil {
		return nil, err
	}
	if isFile(p) {
		if _, err := keepBackup(c, p); err != nil {
			return nil, err
		}
		return done, replace(p, data, 0o644)
	}
	return done, copyOver(b.file, p, data)
}

func deleteBackup(p string, c *module.Call) (any, error) {
	b, none, err := backupBy(c, p)
	if err != nil {
		return nil, err
	}
	if none != "" {
		c.RC = 1
		return map[string]any{"result": false, "comment": none}, nil
	}
	if !c.Test {
		if err := os.Remove(b.file); err != nil {
			return nil, failed("removed", b.file, err)
		}
	}
	return map[string]any{"result": true, "comment": "Successfully removed " + b.file}, nil
}
