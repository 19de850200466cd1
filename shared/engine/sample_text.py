"""What quantized weights are tried on: a little of what a language model is asked for."""

SAMPLE = """\
The ferry left the harbour twenty minutes late, because a horse refused to walk up the ramp. Its owner, a tall
woman in a yellow coat, spoke to it quietly for a while, then gave up and sat down on a coil of rope. "He was
fine yesterday," she told the sailor. "He likes boats. It is the gulls that he cannot stand." The sailor nodded
as if he had heard this many times before, took an apple out of his pocket, and held it out without a word. The
horse looked at the apple, then at the gulls, and walked on board.

On the island there was one road, one shop and a school with eleven children. In winter the mail came on
Tuesdays, if the sea allowed it. Anna had lived there all her life and could tell the wind by the sound of the
chimney. When visitors asked her whether she was ever lonely, she laughed and said that she had a brother in the
city, and that he was the loneliest person she knew.

Water boils at 100 degrees Celsius at sea level, but on a mountain of 3,000 metres it boils at about 90, because
the air presses less on it. The Earth goes around the Sun once in 365.25 days, which is why every fourth year
has an extra day in February. Light needs a little more than eight minutes from the Sun to the Earth. The human
body has 206 bones, more than half of them in the hands and the feet. Paris is the capital of France, and the
Nile flows north into the Mediterranean Sea.

To make bread for four people, mix 500 grams of flour with 10 grams of salt, 7 grams of dry yeast and 320
millilitres of warm water. Knead the dough for ten minutes, cover it, and let it rest for an hour in a warm
place. Then shape it and bake it at 220 degrees until the crust is brown, which takes 35 to 40 minutes. If you
knock on the bottom of the loaf and it sounds hollow, it is done.

A function that counts how often each word appears in a text can be written in a few lines of Python:

def count_words(text):
    counts = {}
    for word in text.lower().split():
        counts[word] = counts.get(word, 0) + 1
    return counts

for word, count in sorted(count_words("the cat and the dog").items()):
    print(word, count)

The meeting has been moved to Thursday, 14 March, at 9:30. Please bring the figures of the last quarter: sales
rose by 4.2 percent to 1.8 million, while costs stayed the same. We should decide whether to hire two more
people before the summer or to wait until the new building is ready. If you cannot come, let me know by Monday
evening.
"""
