package pathosam

import groovy.transform.CompileStatic

/**
 * JSON read from a stream and written to text.
 *
 * QuPath comes with Groovy but without its module groovy.json, and a result of a hundred
 * thousand nuclei should not lie in memory as one tree: features are handed over one by one.
 * Objects become maps in their order, arrays lists, numbers Long or Double.
 */
@CompileStatic
class Json {

    private static final int END = -1
    private static final int BUFFER = 1 << 16
    private static final int DOUBLE_QUOTE = 34
    private static final int COMMA = 44
    private static final int COLON = 58
    private static final int OPEN_LIST = 91
    private static final int BACKSLASH = 92
    private static final int CLOSE_LIST = 93
    private static final int OPEN_MAP = 123
    private static final int CLOSE_MAP = 125
    private static final int SPACE = 32
    private static final int HEXADECIMAL = 16
    private static final int UNICODE_DIGITS = 4
    private static final int POINT = 46
    private static final int ZERO = 48
    private static final int NINE = 57
    private static final int TEN = 10
    private static final int MOST_DIGITS = 15
    private static final double[] POWERS = (0..MOST_DIGITS).collect { int one -> Math.pow(TEN, one) } as double[]
    private static final Map<String, String> ESCAPES = [
        'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t', '/': '/', '"': '"', '\\': '\\',
    ]

    private final Reader reader
    private final char[] buffer = new char[BUFFER]
    private final StringBuilder text = new StringBuilder()
    private int filled
    private int position
    private int current

    private Json(Reader reader) {
        this.reader = reader
        advance()
    }

    /** The value that a text holds. */
    static Object parse(String source) {
        parse(new StringReader(source))
    }

    /** The value that a stream holds. */
    static Object parse(Reader source) {
        Json json = new Json(source)
        Object value = json.value()
        json.end()
        value
    }

    /**
     * Hand over the features of a GeoJSON FeatureCollection one by one.
     *
     * @return how many there were
     */
    static int features(Reader source, Closure consumer) {
        Json json = new Json(source)
        int count = 0
        String name = json.firstName()
        while (name != null) {
            if (name == 'features') {
                boolean more = json.firstElement()
                while (more) {
                    consumer.call(json.value())
                    count++
                    more = json.nextElement()
                }
            } else {
                json.value()
            }
            name = json.nextName()
        }
        json.end()
        count
    }

    /** A value of maps, lists, texts, numbers, booleans and null as JSON. */
    static String write(Object value) {
        StringBuilder out = new StringBuilder()
        append(out, value)
        out.toString()
    }

    private static void append(StringBuilder out, Object value) {
        if (value instanceof Map) {
            out.append('{')
            String comma = ''
            for (Map.Entry entry : ((Map) value).entrySet()) {
                out.append(comma)
                quote(out, String.valueOf(entry.key))
                out.append(':')
                append(out, entry.value)
                comma = ','
            }
            out.append('}')
        } else if (value instanceof Iterable) {
            out.append('[')
            String comma = ''
            for (Object element : (Iterable) value) {
                out.append(comma)
                append(out, element)
                comma = ','
            }
            out.append(']')
        } else if (value == null || value instanceof Number || value instanceof Boolean) {
            out.append(value)
        } else {
            quote(out, value.toString())
        }
    }

    private static void quote(StringBuilder out, String value) {
        out.append('"')
        for (int i = 0; i < value.length(); i++) {
            int character = (int) value.charAt(i)
            if (character == DOUBLE_QUOTE || character == BACKSLASH) {
                out.append('\\').append((char) character)
            } else if (character < SPACE) {
                out.append(String.format('\\u%04x', character))
            } else {
                out.append((char) character)
            }
        }
        out.append('"')
    }

    private Object value() {
        skipSpace()
        switch (current) {
            case OPEN_MAP: return map()
            case OPEN_LIST: return list()
            case DOUBLE_QUOTE: return string()
            default: return word()
        }
    }

    private Map<String, Object> map() {
        Map<String, Object> map = [:]
        String name = firstName()
        while (name != null) {
            map.put(name, value())
            name = nextName()
        }
        map
    }

    private List<Object> list() {
        List<Object> list = []
        boolean more = firstElement()
        while (more) {
            list.add(value())
            more = nextElement()
        }
        list
    }

    /** Step into an object; its first name, null where it is empty. */
    private String firstName() {
        skipSpace()
        take(OPEN_MAP)
        closes(CLOSE_MAP) ? null : nameOfMember()
    }

    /** Step on after a member's value; the next name, null at the end. */
    private String nextName() {
        if (closes(CLOSE_MAP)) {
            return null
        }
        take(COMMA)
        nameOfMember()
    }

    private String nameOfMember() {
        skipSpace()
        String name = string()
        skipSpace()
        take(COLON)
        name
    }

    private boolean firstElement() {
        skipSpace()
        take(OPEN_LIST)
        !closes(CLOSE_LIST)
    }

    private boolean nextElement() {
        if (closes(CLOSE_LIST)) {
            return false
        }
        take(COMMA)
        true
    }

    private String string() {
        take(DOUBLE_QUOTE)
        text.length = 0
        while (current != DOUBLE_QUOTE) {
            if (current == END) {
                throw broken('a text that ends')
            }
            if (current == BACKSLASH) {
                advance()
                escape()
            } else {
                text.append((char) current)
                advance()
            }
        }
        advance()
        text.toString()
    }

    private void escape() {
        String letter = String.valueOf((char) current)
        advance()
        if (letter == 'u') {
            StringBuilder digits = new StringBuilder()
            UNICODE_DIGITS.times {
                digits.append((char) current)
                advance()
            }
            text.append((char) Integer.parseInt(digits.toString(), HEXADECIMAL))
        } else if (ESCAPES.containsKey(letter)) {
            text.append(ESCAPES[letter])
        } else {
            throw broken('an escape of JSON')
        }
    }

    private Object word() {
        text.length = 0
        // Most words are coordinates: digits that a double holds, over a power of ten that it
        // holds too, give the same number as the library's slower way.
        long digits = 0
        int decimals = -1
        boolean plain = true
        while (current > SPACE && current != COMMA && current != CLOSE_LIST && current != CLOSE_MAP) {
            text.append((char) current)
            if (current >= ZERO && current <= NINE && text.length() <= MOST_DIGITS) {
                digits = digits * TEN + current - ZERO
                if (decimals >= 0) {
                    decimals++
                }
            } else if (current == POINT && decimals < 0 && text.length() > 1) {
                decimals = 0
            } else {
                plain = false
            }
            advance()
        }
        if (plain && text.length() > 0 && decimals != 0) {
            return decimals < 0 ? (Object) digits : (Object) (digits / POWERS[decimals])
        }
        longWord(text.toString())
    }

    private Object longWord(String word) {
        switch (word) {
            case 'true': return true
            case 'false': return false
            case 'null': return null
        }
        try {
            boolean fraction = word.contains('.') || word.toLowerCase().contains('e')
            return fraction ? (Object) Double.valueOf(word) : (Object) Long.valueOf(word)
        } catch (NumberFormatException ignored) {
            throw broken("a value instead of '${word}'")
        }
    }

    private boolean closes(int bracket) {
        skipSpace()
        if (current == bracket) {
            advance()
            return true
        }
        false
    }

    private void take(int character) {
        if (current != character) {
            throw broken("'${(char) character}'")
        }
        advance()
    }

    // Called on an instance from the static methods above, which the rule does not see.
    @SuppressWarnings('UnusedPrivateMethod')
    private void end() {
        skipSpace()
        if (current != END) {
            throw broken('the end')
        }
    }

    private void skipSpace() {
        while (current != END && current <= SPACE) {
            advance()
        }
    }

    private void advance() {
        if (position == filled) {
            filled = reader.read(buffer, 0, BUFFER)
            position = 0
            if (filled <= 0) {
                filled = 0
                current = END
                return
            }
        }
        current = (int) buffer[position++]
    }

    private PathosamException broken(String expected) {
        String found = current == END ? 'the end' : "'${(char) current}'"
        new PathosamException('answer of the server', "expected ${expected}, found ${found}",
            'Run it again; if that does not help, start the server anew.', 'not_json')
    }

}
