package bootdisk

import (
	"errors"
	"fmt"
	"strings"
)

// GRUB's language, as far as configurations use it (GRUB manual, "Writing full configuration files directly").

// maxNesting bounds blocks inside blocks, and files that include files.
const maxNesting = 32

// word is a word of a command: pieces of text and of variables, one after the other.
type word []piece

type piece struct {
	text     string
	variable bool // text is a variable's name
	quoted   bool // its value is not split into words
}

// statement is a command, a condition, a loop or a function.
type statement struct {
	words []word
	block []statement // of menuentry and submenu; of a loop; of a function

	kind  statementKind
	cases []branch // of a condition
}

type statementKind int

const (
	command statementKind = iota
	condition
	loop     // words are the variable and the values
	function // words is the name
)

// branch is what a condition does if all that is in test succeeds at the end; test is nil for else.
type branch struct {
	test, body []statement
}

// token is a word, or one of the characters that stand for themselves.
type token struct {
	word word
	mark byte // ; { } or 0 for a word; a line's end is a ;
}

// plain is the word's text where it is a bare word, as keywords are.
func (t token) plain() string {
	if t.mark == 0 && len(t.word) == 1 && !t.word[0].variable && !t.word[0].quoted {
		return t.word[0].text
	}
	return ""
}

var errScript = errors.New("grub.cfg makes no sense")

// scan takes a script apart.
func scan(s string) ([]token, error) {
	var tokens []token
	var w word
	var text strings.Builder
	open := false // a word has begun
	flush := func(quoted bool) {
		if text.Len() > 0 || quoted {
			w = append(w, piece{text: text.String(), quoted: quoted})
			text.Reset()
		}
	}
	end := func() {
		if open {
			flush(false)
			tokens = append(tokens, token{word: w})
			w, open = nil, false
		}
	}
	variable := func(i int, quoted bool) int {
		flush(quoted && text.Len() > 0)
		var name string
		if i < len(s) && s[i] == '{' {
			n := strings.IndexByte(s[i:], '}')
			if n < 0 {
				return -1
			}
			name, i = s[i+1:i+n], i+n+1
		} else {
			n := i
			for n < len(s) && (isLetter(s[n]) || isDigit(s[n]) || s[n] == '_' || n == i && strings.IndexByte("?#@*", s[n]) >= 0) {
				n++
			}
			name, i = s[i:n], n
		}
		w = append(w, piece{text: name, variable: true, quoted: quoted})
		return i
	}
	for i := 0; i < len(s); {
		switch c := s[i]; c {
		case ' ', '\t', '\r':
			end()
			i++
		case '\n', ';', '{', '}':
			// A brace is one of its own only as a word.
			if (c == '{' || c == '}') && open {
				text.WriteByte(c)
				i++
				continue
			}
			end()
			if c == '\n' {
				c = ';'
			}
			tokens = append(tokens, token{mark: c})
			i++
		case '#':
			if open {
				text.WriteByte(c)
				i++
				continue
			}
			n := strings.IndexByte(s[i:], '\n')
			if n < 0 {
				n = len(s) - i
			}
			i += n
		case '\\':
			if i+1 < len(s) && s[i+1] == '\n' {
				i += 2
				continue
			}
			open = true
			if i+1 < len(s) {
				flush(false)
				text.WriteByte(s[i+1])
				flush(true)
			}
			i += 2
		case '\'':
			n := strings.IndexByte(s[i+1:], '\'')
			if n < 0 {
				return nil, fmt.Errorf("%w: a quote without an end", errScript)
			}
			open = true
			flush(false)
			text.WriteString(s[i+1 : i+1+n])
			flush(true)
			i += n + 2
		case '"':
			open = true
			flush(false)
			for i++; ; {
				if i >= len(s) {
					return nil, fmt.Errorf("%w: a quote without an end", errScript)
				}
				if s[i] == '"' {
					break
				}
				switch {
				case s[i] == '\\' && i+1 < len(s) && strings.IndexByte("$\"\\\n", s[i+1]) >= 0:
					if s[i+1] != '\n' {
						text.WriteByte(s[i+1])
					}
					i += 2
				case s[i] == '$':
					if i = variable(i+1, true); i < 0 {
						return nil, fmt.Errorf("%w: ${ without an end", errScript)
					}
				default:
					text.WriteByte(s[i])
					i++
				}
			}
			flush(true)
			i++
		case '$':
			open = true
			if i = variable(i+1, false); i < 0 {
				return nil, fmt.Errorf("%w: ${ without an end", errScript)
			}
		default:
			open = true
			text.WriteByte(c)
			i++
		}
	}
	end()
	return tokens, nil
}

// parser makes statements of tokens.
type parser struct {
	tokens []token
	at     int
	depth  int
}

// parse reads a whole script.
func parse(s string) ([]statement, error) {
	tokens, err := scan(s)
	if err != nil {
		return nil, err
	}
	p := &parser{tokens: tokens}
	out, err := p.statements()
	if err == nil && p.at < len(tokens) {
		err = fmt.Errorf("%w: %q ends nothing", errScript, p.peek())
	}
	return out, err
}

// peek is the next token as a keyword or a mark; empty for what is neither, and at the end.
func (p *parser) peek() string {
	if p.at >= len(p.tokens) {
		return ""
	}
	if t := p.tokens[p.at]; t.mark != 0 {
		return string(t.mark)
	}
	return p.tokens[p.at].plain()
}

func (p *parser) skipEnds() {
	for p.peek() == ";" {
		p.at++
	}
}

// expect takes the keyword or mark.
func (p *parser) expect(what string) error {
	p.skipEnds()
	if p.peek() != what {
		return fmt.Errorf("%w: %q is missing", errScript, what)
	}
	p.at++
	return nil
}

// statements reads up to what ends a block, which it leaves.
func (p *parser) statements() (out []statement, err error) {
	if p.depth++; p.depth > maxNesting {
		return nil, fmt.Errorf("%w: blocks in more than %d blocks", errScript, maxNesting)
	}
	defer func() { p.depth-- }()
	for {
		p.skipEnds()
		if p.at >= len(p.tokens) {
			return out, nil
		}
		switch p.peek() {
		case "}", "then", "elif", "else", "fi", "do", "done":
			return out, nil
		}
		s, err := p.statement()
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
}

func (p *parser) statement() (statement, error) {
	switch p.peek() {
	case "if":
		return p.condition()
	case "for":
		return p.loop()
	case "function":
		return p.function()
	case "while", "until":
		return statement{}, fmt.Errorf("%w: %s is not known here", errScript, p.peek())
	}
	var s statement
	for p.at < len(p.tokens) {
		t := p.tokens[p.at]
		switch t.mark {
		case 0:
			s.words = append(s.words, t.word)
			p.at++
			continue
		case '{':
			p.at++
			block, err := p.statements()
			if err != nil {
				return s, err
			}
			s.block = block
			return s, p.expect("}")
		}
		break
	}
	if len(s.words) == 0 {
		return s, fmt.Errorf("%w: %q where a command should be", errScript, p.peek())
	}
	return s, nil
}

func (p *parser) condition() (statement, error) {
	s := statement{kind: condition}
	for keyword := p.peek(); ; keyword = p.peek() {
		p.at++
		var b branch
		var err error
		switch keyword {
		case "if", "elif":
			if b.test, err = p.statements(); err != nil {
				return s, err
			}
			if len(b.test) == 0 {
				return s, fmt.Errorf("%w: %s without a condition", errScript, keyword)
			}
			if err := p.expect("then"); err != nil {
				return s, err
			}
		case "else":
		case "fi":
			return s, nil
		default:
			return s, fmt.Errorf("%w: if without fi", errScript)
		}
		if b.body, err = p.statements(); err != nil {
			return s, err
		}
		s.cases = append(s.cases, b)
	}
}

func (p *parser) loop() (statement, error) {
	s := statement{kind: loop}
	for p.at++; p.at < len(p.tokens) && p.tokens[p.at].mark == 0; p.at++ {
		s.words = append(s.words, p.tokens[p.at].word)
	}
	if len(s.words) < 2 || (token{word: s.words[1]}).plain() != "in" || (token{word: s.words[0]}).plain() == "" {
		return s, fmt.Errorf("%w: for without in", errScript)
	}
	if err := p.expect("do"); err != nil {
		return s, err
	}
	var err error
	if s.block, err = p.statements(); err != nil {
		return s, err
	}
	return s, p.expect("done")
}

func (p *parser) function() (statement, error) {
	p.at++
	s := statement{kind: function}
	if p.at >= len(p.tokens) || p.tokens[p.at].plain() == "" {
		return s, fmt.Errorf("%w: function without a name", errScript)
	}
	s.words = []word{p.tokens[p.at].word}
	p.at++
	if err := p.expect("{"); err != nil {
		return s, err
	}
	var err error
	if s.block, err = p.statements(); err != nil {
		return s, err
	}
	return s, p.expect("}")
}
