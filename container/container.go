// Package container keeps containers whose processes run in a virtual machine of their own: their configuration, their disks and
// what they have said, in one folder for each, and the machines while they run.
//
// Several processes may use the folder at once, and each container's machine lives in one of them, its monitor. What tells that
// it runs is a lock that the monitor's process holds: it goes with the process, however that ends.
//
//	containers/
//	  .lock           held while names are given
//	  ID/
//	    spec.json     what was asked for
//	    state.json    when it ran, and how that ended
//	    .lock         held by the monitor
//	    disk.qcow2    what the container has written, over its image's root file system
//	    log           what it has said (package log)
//	    console       what its kernel has said
//	    vsock         connections to its init (package vmm/container/wire)
package container

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmm/internal/filelock"
	"vmm/network/user"
)

// Spec is what a container is to be. It does not change.
type Spec struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"`

	Image   string `json:"image"`   // as the user called it
	ImageID string `json:"imageID"` // in full
	Rootfs  string `json:"rootfs"`  // the path of its root file system

	Args     []string `json:"args"`
	Env      []string `json:"env,omitempty"`
	Dir      string   `json:"dir,omitempty"`
	User     string   `json:"user,omitempty"`
	Hostname string   `json:"hostname"`
	TTY      bool     `json:"tty,omitempty"`
	Stdin    bool     `json:"stdin,omitempty"`

	CPUs     int               `json:"cpus"`
	Memory   uint64            `json:"memory"` // bytes
	ReadOnly bool              `json:"readOnly,omitempty"`
	Tmpfs    map[string]string `json:"tmpfs,omitempty"`
	Ports    []user.Forward    `json:"ports,omitempty"`

	Kernel      string        `json:"kernel,omitempty"` // a path; empty for the one that is found
	StopSignal  int           `json:"stopSignal"`
	StopTimeout time.Duration `json:"stopTimeout"`
	AutoRemove  bool          `json:"autoRemove,omitempty"`
}

// State is what became of it so far.
type State struct {
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
	Status   int       `json:"status"`          // of the main process, once it has finished
	Error    string    `json:"error,omitempty"` // why it did not run, or not to its end
	Monitor  int       `json:"monitor,omitempty"`
	Timeline Timeline  `json:"timeline,omitzero"`
}

// Timeline is how long after the start of its monitor's work a container had come to each point of its life.
type Timeline struct {
	Built   time.Duration `json:"built"`   // its machine is made, and starts
	Up      time.Duration `json:"up"`      // the guest's kernel has started its init, which has said so
	Ready   time.Duration `json:"ready"`   // the system is as its processes want it
	Running time.Duration `json:"running"` // the main process runs
	Exited  time.Duration `json:"exited"`  // it has ended
	Ended   time.Duration `json:"ended"`   // the machine has powered off
}

// StatusLost is the status of a container whose monitor ended without a word: somebody killed it, or the host went down.
const StatusLost = 255

// Container is one of a store.
type Container struct {
	Spec  Spec
	State State
	Alive bool // its machine runs, or is being started

	dir string
}

// Store is a folder of containers.
type Store struct{ dir string }

// Open opens the store in dir, and makes it if need be.
func Open(dir string) (*Store, error) {
	// What runs in there, and with which secrets, is the user's alone.
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return &Store{dir}, nil
}

// ErrNotFound is wrapped by the error for a name that no container has.
var ErrNotFound = errors.New("no such container")

// validName is what Docker takes.
var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// lock keeps others from giving and taking names.
func (s *Store) lock() (unlock func(), err error) {
	return filelock.Take(filepath.Join(s.dir, ".lock"), unix.LOCK_EX)
}

// Create keeps a new container, gives it its ID, and a name if it has none. prepare makes what else it needs in its folder.
func (s *Store) Create(spec Spec, prepare func(dir string) error) (*Container, error) {
	if spec.Name != "" && !validName.MatchString(spec.Name) {
		return nil, fmt.Errorf("name %q: letters, digits, and later _ . -", spec.Name)
	}
	unlock, err := s.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	list, err := s.list()
	if err != nil {
		return nil, err
	}
	taken := func(name string) *Container {
		if i := slices.IndexFunc(list, func(c *Container) bool { return c.Spec.Name == name }); i >= 0 {
			return list[i]
		}
		return nil
	}
	if other := taken(spec.Name); other != nil {
		return nil, fmt.Errorf("name %q: container %s has it (remove it: vmm rm %[1]s)", spec.Name, other.Spec.ID)
	}
	var id [6]byte
	_, _ = rand.Read(id[:]) // does not fail
	spec.ID = hex.EncodeToString(id[:])
	if spec.Name == "" {
		spec.Name = defaultName(spec.Image, spec.ID)
	}
	if spec.Hostname == "" {
		spec.Hostname = spec.ID
	}
	spec.Created = time.Now()
	// Whole or not at all: under another name until it is.
	dir, err := os.MkdirTemp(s.dir, ".new-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := write(filepath.Join(dir, "spec.json"), spec); err != nil {
		return nil, err
	}
	if err := prepare(dir); err != nil {
		return nil, err
	}
	to := filepath.Join(s.dir, spec.ID)
	if err := os.Rename(dir, to); err != nil {
		return nil, err
	}
	return &Container{Spec: spec, dir: to}, nil
}

// defaultName is what a container is called that nobody has named: its image's name and the start of its ID.
func defaultName(image, id string) string {
	base := image[strings.LastIndexByte(image, '/')+1:]
	base, _, _ = strings.Cut(base, "@")
	base, _, _ = strings.Cut(base, ":")
	if name := base + "-" + id[:6]; validName.MatchString(name) {
		return name
	}
	return "container-" + id[:6]
}

// write writes v as JSON, whole or not at all.
func write(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func read(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// List returns the containers, the newest first. Those that ended unseen it settles: the ones that were to be removed are.
func (s *Store) List() ([]*Container, error) {
	unlock, err := s.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	list, err := s.list()
	if err != nil {
		return nil, err
	}
	kept := list[:0]
	for _, c := range list {
		gone, err := c.settle()
		if err != nil {
			return nil, err
		}
		if !gone {
			kept = append(kept, c)
		}
	}
	// Those that somebody was killed while making.
	if left, _ := filepath.Glob(filepath.Join(s.dir, ".new-*")); left != nil {
		for _, path := range left { // nobody makes one now: we have the lock
			_ = os.RemoveAll(path)
		}
	}
	return kept, nil
}

// list reads the containers; the store is locked.
func (s *Store) list() ([]*Container, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var list []*Container
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || !e.IsDir() {
			continue
		}
		c := &Container{dir: filepath.Join(s.dir, e.Name())}
		if err := read(filepath.Join(c.dir, "spec.json"), &c.Spec); err != nil {
			return nil, err
		}
		if err := c.Refresh(); err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b *Container) int { return b.Spec.Created.Compare(a.Spec.Created) })
	return list, nil
}

// Get returns the container that has the name, or an ID that begins with it.
func (s *Store) Get(name string) (*Container, error) {
	list, err := s.List()
	if err != nil {
		return nil, err
	}
	var found []*Container
	for _, c := range list {
		if c.Spec.Name == name || c.Spec.ID == name {
			return c, nil
		}
		if name != "" && strings.HasPrefix(c.Spec.ID, name) {
			found = append(found, c)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%d containers have an ID that begins with %q", len(found), name)
}

// Remove removes a container that does not run, with what it has written.
func (s *Store) Remove(c *Container) error {
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if c.alive() {
		return fmt.Errorf("container %s runs (vmm stop %[1]s ends it, vmm rm -f too)", c.Spec.Name)
	}
	return os.RemoveAll(c.dir)
}

// Refresh reads what has become of the container meanwhile.
func (c *Container) Refresh() error {
	c.Alive = c.alive()
	c.State = State{}
	if err := read(c.path("state.json"), &c.State); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (c *Container) path(name string) string { return filepath.Join(c.dir, name) }

// settle writes down that a monitor has ended without a word.
func (c *Container) settle() (gone bool, err error) {
	if c.Alive || c.State.Started.IsZero() && c.State.Monitor == 0 || !c.State.Finished.IsZero() {
		return false, nil
	}
	if c.alive() { // it may have begun, or ended, since we looked
		return false, nil
	}
	if err := c.Refresh(); err != nil || c.Alive || !c.State.Finished.IsZero() {
		return false, err
	}
	if c.Spec.AutoRemove {
		return true, os.RemoveAll(c.dir)
	}
	c.State.Finished, c.State.Status, c.State.Error = time.Now(), StatusLost, "its monitor ended without a word"
	return false, write(c.path("state.json"), c.State)
}

// The monitor's lock is one of the open file description's, so that others can ask for it without taking it.
var monitorLock = unix.Flock_t{Type: unix.F_WRLCK}

// alive tells whether a monitor has the container.
func (c *Container) alive() bool {
	f, err := os.OpenFile(c.path(".lock"), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	l := monitorLock
	// Who waits for the end of a container has a lock to read for a moment.
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l) == nil && l.Type == unix.F_WRLCK
}

// take makes this process the container's monitor, until release.
func (c *Container) take() (release func(), err error) {
	f, err := os.OpenFile(c.path(".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		l := monitorLock
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if errors.Is(err, unix.EAGAIN) && !c.alive() { // somebody has waited, and is about to let go
			continue
		}
		_ = f.Close()
		if errors.Is(err, unix.EAGAIN) {
			return nil, fmt.Errorf("container %s runs already", c.Spec.Name)
		}
		return nil, err
	}
}

// Wait waits until the container does not run, and reads what became of it.
func (c *Container) Wait() error {
	f, err := os.OpenFile(c.path(".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		return nil // removed
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		l := unix.Flock_t{Type: unix.F_RDLCK}
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &l)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	_ = f.Close()
	return c.Refresh()
}
