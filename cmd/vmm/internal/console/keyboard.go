package console

import (
	"io"
	"sync"
)

// maxTyped bounds what the keyboard holds for a guest that does not read: more than anyone pastes.
const maxTyped = 1 << 20

// keyboard reads a terminal without pause, so that the keys work although the guest takes no input, and holds the rest
// for it.
type keyboard struct {
	terminal io.Reader // its Close must end a Read
	onKey    func(Key)

	start sync.Once
	done  sync.WaitGroup

	mu     sync.Mutex // guards what follows
	change sync.Cond  // on mu: typed, breaks or err have changed
	typed  []byte
	breaks []int // lengths of typed that come before each pending break
	err    error // what ended the terminal's input
}

func newKeyboard(terminal io.Reader, onKey func(Key)) *keyboard {
	k := &keyboard{terminal: terminal, onKey: onKey}
	k.change.L = &k.mu
	return k
}

// Read returns what was typed for the guest. A break is reported, by onKey, between the bytes that it came between.
func (k *keyboard) Read(p []byte) (int, error) {
	k.start.Do(func() { k.done.Go(k.run) })
	for {
		n, atBreak, err := k.take(p)
		if !atBreak {
			return n, err
		}
		k.onKey(KeyBreak)
	}
}

// take waits for input and copies the bytes before the next break, or takes the break where that comes first.
func (k *keyboard) take(p []byte) (n int, atBreak bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(k.typed) == 0 && len(k.breaks) == 0 && k.err == nil {
		k.change.Wait()
	}
	ready := len(k.typed)
	if len(k.breaks) > 0 {
		ready = k.breaks[0]
		if ready == 0 {
			k.breaks = k.breaks[1:]
			return 0, true, nil
		}
	}
	if ready == 0 {
		return 0, false, k.err
	}
	n = copy(p, k.typed[:ready])
	k.typed = k.typed[n:]
	for i := range k.breaks {
		k.breaks[i] -= n
	}
	k.change.Broadcast()
	return n, false, nil
}

// run reads the terminal until that ends.
func (k *keyboard) run() {
	var keys escape
	buf := make([]byte, 4096)
	for {
		n, err := k.terminal.Read(buf)
		text := buf[:0] // of the guest's, in place
		for _, b := range buf[:n] {
			key, pass := keys.next(b)
			switch {
			case pass:
				text = append(text, b)
			case key == KeyBreak:
				k.add(text, true)
				text = text[:0]
			case key != 0:
				k.onKey(key)
			}
		}
		k.add(text, false)
		if !k.endOrRoom(err) {
			return
		}
	}
}

// add queues text for the guest, and then a break.
func (k *keyboard) add(text []byte, thenBreak bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.typed = append(k.typed, text...)
	if thenBreak {
		k.breaks = append(k.breaks, len(k.typed))
	}
	k.change.Broadcast()
}

// endOrRoom notes the end of the input, if there is err, and otherwise waits until there is room for more. It reports
// whether the input goes on.
func (k *keyboard) endOrRoom(err error) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err == nil {
		k.err = err
	}
	k.change.Broadcast()
	for k.err == nil && len(k.typed)+len(k.breaks) >= maxTyped {
		k.change.Wait()
	}
	return k.err == nil
}

// stop ends the input with err and waits for the reader of the terminal, whose own Read the caller has ended.
func (k *keyboard) stop(err error) {
	k.start.Do(func() {}) // too late to start
	k.endOrRoom(err)
	k.done.Wait()
}
